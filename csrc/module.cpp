// conformer_fast._C: what Python sees. Everything is checked here, before threads start and without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "arrow.h"
#include "int8_module.h"
#include "parallel.h"
#include "regions_module.h"
#include "resample.h"
#include "winograd_module.h"

namespace py = pybind11;

namespace conformer_fast {
namespace {

constexpr const Passes* kFastestFirst[] = {&kAvx512, &kAvx2, &kPortable};

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Passes* passes : kFastestFirst)
        if (passes->supported()) names.emplace_back(passes->name);
    return names;
}

const Passes& chosen(const std::string& name) {
    std::string here;
    for (const Passes* passes : kFastestFirst) {
        if (!passes->supported()) continue;
        if (name.empty() || name == passes->name) return *passes;
        here += (here.empty() ? "" : ", ") + std::string(passes->name);
    }
    throw py::value_error("no instruction set '" + name + "' on this machine; it has " + here);
}

// Rows below those that a strip stands for, so that kOverread bytes behind those can be read.
std::int64_t strip_spare_rows(std::int32_t width) {
    if (width < 1) throw py::value_error("width must be at least 1, got " + std::to_string(width));
    return kOverread / (4 * std::int64_t{width}) + 1;
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

bool aligned(const py::array& array) {
    return reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::size_t>(array.itemsize()) == 0;
}

std::string text(std::int32_t width, std::int32_t height) {
    return std::to_string(width) + "x" + std::to_string(height);
}

void use_array(Picture& picture, const py::array& array) {
    if (!array.dtype().is(py::dtype::of<std::uint8_t>()))
        throw py::type_error("pixels must be uint8, got " + std::string(py::str(array.dtype())));
    if (array.ndim() != 3 || array.shape(0) != picture.height || array.shape(1) != picture.width ||
        array.shape(2) != 3)
        throw py::value_error("pixels of a " + text(picture.width, picture.height) +
                              " picture must have shape (height, width, 3), got " + shape_of(array));
    if (!(array.flags() & py::array::c_style)) throw py::value_error("pixels must be contiguous; copy them first");
    picture.strips = {static_cast<const std::uint8_t*>(array.data())};
    picture.pixel_size = 3;
}

const void* inside(const py::handle& capsule, const char* name) {
    const void* found = PyCapsule_GetPointer(capsule.ptr(), name);
    if (found == nullptr) throw py::error_already_set();
    return found;
}

Memory memory_in(const py::tuple& capsules) {
    if (capsules.size() != 2) throw py::value_error("pixels must be an array or the two capsules of a picture");
    return memory_of(inside(capsules[0], "arrow_schema"), inside(capsules[1], "arrow_array"));
}

void use_capsules(Picture& picture, const py::tuple& capsules) {
    const Memory memory = memory_in(capsules);
    const std::int64_t expected = std::int64_t{picture.width} * picture.height;
    if (memory.count != expected)
        throw py::value_error("the picture's memory holds " + std::to_string(memory.count) + " pixels in a row, " +
                              std::to_string(expected) + " were expected; give it as an array");
    picture.strips = {memory.pixels};
}

void use_strips(Picture& picture, const py::list& strips) {
    picture.roomy = true;
    const std::int64_t spare = strip_spare_rows(picture.width);
    for (const py::handle& strip : strips) {
        const Memory memory = memory_in(strip.cast<py::tuple>());
        const std::int64_t rows = memory.count / picture.width - spare;
        if (picture.strips.empty()) picture.strip_rows = static_cast<std::int32_t>(rows);
        if (rows < 1 || rows != picture.strip_rows || memory.count % picture.width != 0)
            throw py::value_error("a strip holds " + std::to_string(memory.count) + " pixels, which are not the rows " +
                                  "of the others, of " + std::to_string(picture.width) + " pixels");
        picture.strips.push_back(memory.pixels);
    }
    if (static_cast<std::int64_t>(picture.strips.size()) * picture.strip_rows < picture.height)
        throw py::value_error(std::to_string(picture.strips.size()) + " strips do not hold the " +
                              std::to_string(picture.height) + " rows of the picture");
}

Picture picture_of(const py::handle& given, std::int32_t size) {
    const auto [pixels, width, height, new_width, new_height, left, top, vertical_first] =
        given.cast<std::tuple<py::object, std::int32_t, std::int32_t, std::int32_t, std::int32_t, std::int32_t,
                              std::int32_t, bool>>();
    if (width < 1 || height < 1) throw py::value_error("a " + text(width, height) + " picture has no pixels");
    if (left < 0 || top < 0 || new_width - std::int64_t{size} < left || new_height - std::int64_t{size} < top)
        throw py::value_error("the window of " + text(size, size) + " pixels at (" + std::to_string(left) + ", " +
                              std::to_string(top) + ") does not lie in the resized picture of " +
                              text(new_width, new_height));
    Picture picture = {{}, height, false, width, height, 4, new_width, new_height, left, top, vertical_first};
    if (py::isinstance<py::array>(pixels)) {
        use_array(picture, pixels);
    } else if (py::isinstance<py::tuple>(pixels)) {
        use_capsules(picture, pixels);
    } else if (py::isinstance<py::list>(pixels)) {
        use_strips(picture, pixels);
    } else {
        throw py::type_error("pixels must be an array, the two capsules of a picture or a list of such pairs, got " +
                             std::string(py::str(py::type::of(pixels))));
    }
    return picture;
}

Layout layout_of(const py::array& out, bool channels_last, const std::optional<py::array>& values,
                 std::size_t pictures) {
    const int rows = channels_last ? 1 : 2, channels = channels_last ? 3 : 1;
    const bool fits = out.ndim() == 4 && out.shape(0) == static_cast<py::ssize_t>(pictures) &&
                      out.shape(channels) == 3 && out.shape(rows) == out.shape(rows + 1) && out.shape(rows) > 0;
    if (!fits)
        throw py::value_error("out must have shape " +
                              std::string(channels_last ? "(B, size, size, 3)" : "(B, 3, size, size)") + " with B = " +
                              std::to_string(pictures) + " and size at least 1, got " + shape_of(out));
    const auto size = static_cast<std::int32_t>(out.shape(rows));
    if (!(out.flags() & py::array::c_style) || !aligned(out) || !out.writeable())
        throw py::value_error("out must be contiguous, aligned and writeable");
    if (!values) {
        if (out.itemsize() != 1) throw py::type_error("out must be uint8 where no values are given");
        return {size, channels_last, nullptr, 1};
    }
    if (values->ndim() != 2 || values->shape(0) != 3 || values->shape(1) != 256 ||
        !(values->flags() & py::array::c_style) || !aligned(*values))
        throw py::value_error("values must be contiguous and aligned, of shape (3, 256), got " + shape_of(*values));
    if (values->itemsize() != out.itemsize() || (out.itemsize() != 2 && out.itemsize() != 4))
        throw py::type_error("values and out must have the same type, of 2 or 4 bytes, got " +
                             std::to_string(values->itemsize()) + " and " + std::to_string(out.itemsize()));
    return {size, channels_last, static_cast<const std::byte*>(values->data()),
            static_cast<int>(out.itemsize())};
}

void resample_batch(const py::list& given, py::array out, bool channels_last, const std::optional<py::array>& values,
                    int threads, const std::string& instructions) {
    if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
    const Layout layout = layout_of(out, channels_last, values, given.size());
    const Passes& passes = chosen(instructions);
    std::vector<Picture> pictures;
    for (const py::handle& one : given) pictures.push_back(picture_of(one, layout.size));
    auto* memory = static_cast<std::byte*>(out.mutable_data());
    py::gil_scoped_release release;
    in_parallel(pictures.size(), static_cast<std::size_t>(threads),
                [&](std::size_t i) { resample(pictures[i], layout, passes, memory + i * layout.bytes()); });
}

}  // namespace
}  // namespace conformer_fast

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
    using namespace conformer_fast;
    module.doc() =
        "Resize, center-crop, normalize and pack, bit for bit as Pillow's bicubic filter; a detector's regions; and 3x3 "
        "convolutions.";
    module.attr("sources") = PYBIND11_TOSTRING(SOURCES);  // setup.py defines it, extension.py compares it
    module.def("instruction_sets", &instruction_sets, "What can run here, the fastest first: avx512, avx2, portable.");
    module.def("strip_spare_rows", &strip_spare_rows, py::arg("width"), "Rows that each strip must have in addition.");
    module.def("resample", &resample_batch, py::arg("pictures"), py::arg("out"), py::arg("channels_last"),
               py::arg("values"), py::arg("threads"), py::arg("instructions") = "", R"(
Fills out, (B, size, size, 3) if channels_last, else (B, 3, size, size), from B pictures.

pictures:     (pixels, width, height, new_width, new_height, left, top, vertical_first) each: the picture is resized, by
              the vertical pass first or by the horizontal, and the window at (left, top) cut out.
              pixels: uint8 (height, width, 3); or what Image.__arrow_c_array__() returns; or a list of such pairs,
              strips of the same number of rows from top to bottom, each with strip_spare_rows(width) more.
values:       (3, 256), what replaces each level of each channel, of out's type (2 or 4 bytes); None: uint8 levels.
threads:      at most so many; the GIL is released.
instructions: one of instruction_sets(), "" for the fastest.

Raises TypeError and ValueError for arguments that do not fit together, before anything is written.)");
    add_regions(module);
    add_winograd(module);
    add_int8(module);
}
