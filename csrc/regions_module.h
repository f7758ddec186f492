#pragma once

#include <pybind11/pybind11.h>

namespace conformer_fast {

namespace py = pybind11;

// Adds `best` and `roi_align` to the module.
void add_regions(py::module_& module);

}  // namespace conformer_fast
