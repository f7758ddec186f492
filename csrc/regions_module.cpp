// What Python sees of regions.h. Everything is checked here, before threads start and without the GIL.
#include "regions_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "parallel.h"
#include "regions.h"

namespace conformer_fast {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;

constexpr float kFarthest = 1e6f;  // of a region's coordinates, in pixels of the map

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

const Box* boxes_in(const Floats& boxes) {
    if (boxes.ndim() != 2 || boxes.shape(1) != 4)
        throw py::value_error("boxes must have shape (N, 4), got " + shape_of(boxes));
    return reinterpret_cast<const Box*>(boxes.data());
}

py::array_t<bool> best(const Floats& boxes, const Integers& groups, float threshold) {
    const Box* first = boxes_in(boxes);
    if (groups.ndim() != 1 || groups.shape(0) != boxes.shape(0))
        throw py::value_error("groups must have shape (N,), one a box, got " + shape_of(groups));
    const auto count = static_cast<std::size_t>(boxes.shape(0));
    const std::int64_t* numbers = groups.data();
    py::array_t<bool> kept(boxes.shape(0));
    bool* out = kept.mutable_data();
    py::gil_scoped_release release;
    keep_best(first, numbers, count, threshold, out);
    return kept;
}

std::vector<FeatureMap> maps_in(const std::vector<Floats>& feature_maps) {
    std::vector<FeatureMap> maps;
    for (const Floats& map : feature_maps) {
        if (map.ndim() != 3 || map.size() == 0)
            throw py::value_error("a map must have shape (height, width, channels), none 0, got " + shape_of(map));
        maps.push_back({map.data(), map.shape(0), map.shape(1), map.shape(2)});
        if (maps.back().channels != maps.front().channels)
            throw py::value_error("maps must have the same channels, got " + shape_of(map));
    }
    if (maps.empty()) throw py::value_error("there must be a map");
    return maps;
}

void roi_align(const std::vector<Floats>& feature_maps, const Integers& levels, const Floats& regions, Floats out,
               int threads) {
    const Box* boxes = boxes_in(regions);
    const std::vector<FeatureMap> maps = maps_in(feature_maps);
    const std::int64_t channels = maps.front().channels;
    if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
    if (out.ndim() != 4 || out.shape(0) != regions.shape(0) || out.shape(3) != channels || out.shape(1) < 1 ||
        out.shape(1) != out.shape(2))
        throw py::value_error("out must have shape (regions, side, side, channels), got " + shape_of(out));
    if (levels.ndim() != 1 || levels.shape(0) != regions.shape(0))
        throw py::value_error("levels must have shape (regions,), got " + shape_of(levels));
    const std::int64_t* level = levels.data();
    for (py::ssize_t i = 0; i < levels.size(); ++i)
        if (level[i] < 0 || level[i] >= static_cast<std::int64_t>(maps.size()))
            throw py::value_error("a region is of level " + std::to_string(level[i]) + ", there are " +
                                  std::to_string(maps.size()) + " maps");
    for (py::ssize_t i = 0; i < regions.size(); ++i)
        if (!(std::fabs(regions.data()[i]) <= kFarthest))
            throw py::value_error("a region has the coordinate " + std::to_string(regions.data()[i]) +
                                  ", which is far from every map");
    const auto side = static_cast<std::int32_t>(out.shape(1));
    const auto count = static_cast<std::size_t>(regions.shape(0));
    float* memory = out.mutable_data();
    py::gil_scoped_release release;
    in_parallel(count, static_cast<std::size_t>(threads),
                [&](std::size_t i) { align(maps[level[i]], boxes[i], side, memory + i * channels * side * side); });
}

}  // namespace

void add_regions(py::module_& module) {
    module.def("best", &best, py::arg("boxes").noconvert(), py::arg("groups").noconvert(), py::arg("threshold"), R"(
Which boxes, (N, 4) float32 ordered by falling score, are kept: each removes the later ones of its group, (N,) int64,
that overlap it by more.)");
    module.def("roi_align", &roi_align, py::arg("feature_maps").noconvert(), py::arg("levels").noconvert(),
               py::arg("regions").noconvert(), py::arg("out").noconvert(), py::arg("threads"), R"(
Fills out (R, side, side, K) with the means of bilinear samples in the cells of regions (R, 4), each in pixels of its
map, of which levels (R,), int64, has the place among those of (H, W, K). All others are float32 and contiguous; the GIL
is released.

Raises TypeError and ValueError for arguments that do not fit together, before anything is written.)");
}

}  // namespace conformer_fast
