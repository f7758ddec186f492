#pragma once

#include <pybind11/pybind11.h>

namespace conformer_fast {

namespace py = pybind11;

// Adds `winograd` and `winograd_weights` to the module.
void add_winograd(py::module_& module);

}  // namespace conformer_fast
