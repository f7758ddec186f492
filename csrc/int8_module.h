#pragma once

#include <pybind11/pybind11.h>

namespace conformer_fast {

namespace py = pybind11;

// Adds `Int8Program`, `int8_run` and `int8_instruction_sets` to the module.
void add_int8(py::module_& module);

}  // namespace conformer_fast
