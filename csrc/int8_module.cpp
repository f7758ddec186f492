// What Python sees of int8_program.h. A step's arguments are the fields of its struct in int8.h, by name; a place in
// the program's memory is given by its offset. Everything is checked here, before threads start and without the GIL.
#include "int8_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "int8_program.h"
#include "parallel.h"

namespace conformer_fast {
namespace {

constexpr Index kMostTokens = (Index{1} << 15) - 1;
constexpr const Int8Kernels* kFastestFirst[] = {&kInt8Amx, &kInt8Avx512, &kInt8Portable};

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Int8Kernels* kernels : kFastestFirst)
        if (kernels->supported()) names.emplace_back(kernels->name);
    return names;
}

const Int8Kernels& chosen(const std::string& name) {
    for (const Int8Kernels* kernels : kFastestFirst)
        if (kernels->supported() && (name.empty() || name == kernels->name)) return *kernels;
    throw py::value_error("no instruction set '" + name + "' for 8 bits on this machine");
}

// A program, and the arrays that its steps read.
struct Kept {
    Program program;
    std::vector<py::object> arrays;
    Index values_in_an_image = 0;  // that it reads

    Kept(const std::string& instructions, Index bytes, Index images)
        : program(chosen(instructions), positive("bytes", bytes), positive("images", images)) {}

    static Index positive(const char* name, Index value) {
        if (value < 1) throw py::value_error(std::string(name) + " must be at least 1, got " + std::to_string(value));
        return value;
    }
};

// The arguments of one step.
class Fields {
public:
    Fields(Kept& kept, const py::kwargs& given) : kept_(kept), given_(given) {}

    bool has(const char* name) const {
        asked_.insert(name);
        return given_.contains(name) && !given_[name].is_none();
    }

    Index number(const char* name, Index least = 1) const {
        const auto value = read<Index>(name);
        if (value < least || value > kMost)
            throw py::value_error(std::string(name) + " must be from " + std::to_string(least) + " to " +
                                  std::to_string(kMost) + ", got " + std::to_string(value));
        return value;
    }

    Index lanes(const char* name) const {
        const Index value = number(name);
        if (value % kLanes)
            throw py::value_error(std::string(name) + " must be a multiple of " + std::to_string(kLanes) + ", got " +
                                  std::to_string(value));
        return value;
    }

    float real(const char* name) const { return read<float>(name); }

    bool flag(const char* name) const { return has(name) && read<bool>(name); }

    Numbers numbers(const char* name) const {
        if (!has(name)) return {1, 1, 0};
        const auto [scale, zero] = read<std::pair<float, std::int32_t>>(name);
        if (!(scale > 0) || std::isinf(scale) || std::isinf(1 / scale) || (zero != 0 && zero != 128))
            throw py::value_error(std::string(name) + " must be a positive scale and 0 or 128, got " +
                                  std::to_string(scale) + ", " + std::to_string(zero));
        return {scale, 1 / scale, zero};
    }

    // A place in the program's memory that `count` values follow.
    template <typename T>
    T* place(const char* name, Index count) const {
        if (!has(name)) return nullptr;
        const auto offset = read<Index>(name);
        const Index size = static_cast<Index>(sizeof(T)), bytes = kept_.program.bytes();
        if (offset < 0 || offset % kAlignment || offset > bytes || count > (bytes - offset) / size)
            throw py::value_error(std::string(name) + ": " + std::to_string(count) + " values of " +
                                  std::to_string(size) + " bytes at " + std::to_string(offset) +
                                  " do not lie in the memory of " + std::to_string(bytes));
        return reinterpret_cast<T*>(kept_.program.at(offset));
    }

    // An array of at least `count` values, which is kept.
    template <typename T>
    const T* array(const char* name, Index count) const {
        if (!has(name)) return nullptr;
        const auto found = py::reinterpret_borrow<py::object>(given_[name]);
        if (!py::isinstance<py::array_t<T, py::array::c_style>>(found))
            throw py::type_error(std::string(name) + " must be a contiguous array of " +
                                 std::string(py::str(py::dtype::of<T>())));
        const auto values = found.cast<py::array_t<T, py::array::c_style>>();
        if (values.size() < count)
            throw py::value_error(std::string(name) + " must have " + std::to_string(count) + " values, got " +
                                  std::to_string(values.size()));
        kept_.arrays.push_back(found);
        return values.data();
    }

    void add(const Step& step) const {
        for (const auto& field : given_)
            if (!asked_.count(field.first.cast<std::string>()))
                throw py::type_error(field.first.cast<std::string>() + " is no field of this step");
        kept_.program.add(step);
    }

private:
    template <typename T>
    T read(const char* name) const {
        if (!has(name)) throw py::type_error(std::string(name) + " is missing");
        try {
            return given_[name].cast<T>();
        } catch (const py::cast_error&) {
            throw py::type_error(std::string(name) + " cannot be " + std::string(py::repr(given_[name])));
        }
    }

    static constexpr Index kMost = Index{1} << 31, kAlignment = 64;

    Kept& kept_;
    const py::kwargs& given_;
    mutable std::set<std::string> asked_;
};

// Of counts that are not negative; what no memory holds where that is too large.
Index times(std::initializer_list<Index> counts) {
    constexpr Index kTooLarge = Index{1} << 60;
    Index total = 1;
    for (const Index count : counts) total = count > 0 && total > kTooLarge / count ? kTooLarge : total * count;
    return total;
}

template <typename T>
T largest_of(const T* values, Index count, T least) {
    for (Index i = 0; values && i < count; ++i) least = std::max(least, values[i]);
    return least;
}

template <typename T>
T least_of(const T* values, Index count, T most) {
    for (Index i = 0; values && i < count; ++i) most = std::min(most, values[i]);
    return most;
}

Index up_to(Index count, Index multiple) { return (count + multiple - 1) / multiple * multiple; }

void product(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Product step{};
    step.in_floats = fields.flag("in_floats");
    step.rows = fields.number("rows");
    step.columns = fields.number("columns");
    step.taps = fields.number("taps");
    step.depth = fields.number("depth");
    step.row_step = fields.number("row_step");
    step.relu = fields.flag("relu");
    step.gelu = fields.flag("gelu");
    step.out_floats = fields.flag("out_floats");
    step.residual_numbers = fields.numbers("residual_numbers");
    step.out_numbers = fields.numbers("out_numbers");
    step.tap = fields.array<std::int32_t>("tap", step.taps);
    const Index tiles = up_to(step.rows, kBlock) / kTile, columns = up_to(step.columns, kBlock);
    step.tiles = fields.array<std::int32_t>("tiles", tiles);
    step.out_rows = fields.array<std::int32_t>("out_rows", step.rows);
    if (!step.tap || least_of(step.tap, step.taps, 0) < 0 || least_of(step.tiles, tiles, 0) < 0)
        throw py::value_error("tap and tiles must not be negative");
    // What the rows' values, and those beside them, reach.
    const Index last_tile = step.tiles ? Index{largest_of(step.tiles, tiles, 0)} : (tiles - 1) * kTile * step.row_step;
    const Index depth = step.in_floats ? step.depth : up_to(step.depth, kDepth);
    const Index reach = last_tile + (kTile - 1) * step.row_step + largest_of(step.tap, step.taps, 0) + depth;
    const Index made = step.out_rows ? Index{largest_of(step.out_rows, step.rows, 0)} + 1 : step.rows;
    const Index results = times({made, step.columns});
    const Index weights = times({columns, step.taps, depth});
    if (step.in_floats) {
        step.in = fields.place<float>("in", reach);
        step.weights = fields.array<float>("weights", weights);
    } else {
        step.in = fields.place<std::uint8_t>("in", reach);
        step.weights = fields.array<std::int8_t>("weights", weights);
    }
    step.scales = fields.array<float>("scales", columns);
    step.bias = fields.array<float>("bias", columns);
    step.residual = fields.place<std::uint8_t>("residual", results + kLanes);
    step.residual_floats = fields.place<float>("residual_floats", results + kLanes);
    if (fields.has("addend")) {
        step.addend_rows = fields.array<std::int32_t>("addend_rows", made);
        if (!step.addend_rows || least_of(step.addend_rows, made, 0) < 0)
            throw py::value_error("addend_rows must not be negative");
        step.addend = fields.place<float>(
            "addend", (Index{largest_of(step.addend_rows, made, 0)} + 1) * step.columns + kLanes);
    }
    if (step.out_floats)
        step.out = fields.place<float>("out", results);
    else
        step.out = fields.place<std::uint8_t>("out", results);
    if (!step.in || !step.weights || !step.scales || !step.bias || !step.out)
        throw py::value_error("a product needs in, weights, scales, bias, tap and out");
    if (!step.out_floats && step.columns % kLanes)
        throw py::value_error("columns of numbers must be a multiple of " + std::to_string(kLanes) + ", got " +
                              std::to_string(step.columns));
    fields.add(step);
}

// Of a norm whose rows are `tokens`.
Norm norm_of(const Fields& fields, const float* tokens, Index rows, Index channels) {
    Norm step{};
    step.tokens = tokens;
    step.rows = rows;
    step.channels = channels;
    step.weight = fields.array<float>("weight", channels);
    step.bias = fields.array<float>("bias", channels);
    step.eps = fields.real("eps");
    step.out = fields.place<std::uint8_t>("out", times({rows, channels}));
    step.out_floats = fields.place<float>("out_values", times({rows, channels}));
    step.out_numbers = fields.numbers("out_numbers");
    if (!step.weight || !step.bias || !(step.out || step.out_floats))
        throw py::value_error("a norm needs weight, bias and out or out_values");
    return step;
}

void norm(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    const Index rows = fields.number("rows"), channels = fields.lanes("channels");
    const Index apart = fields.has("row_step") ? fields.lanes("row_step") : channels;
    const float* tokens = fields.place<float>("tokens", times({rows - 1, apart}) + channels);
    if (!tokens) throw py::value_error("a norm needs tokens");
    Norm step = norm_of(fields, tokens, rows, channels);
    step.row_step = apart;
    fields.add(step);
}

void couple(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Couple step{};
    const Index images = fields.number("images"), channels = fields.lanes("channels");
    step.tokens_per_image = fields.number("tokens_per_image", 2);
    const Index rows = times({images, step.tokens_per_image});
    step.projected = fields.place<float>("projected", times({rows - images, channels}));
    step.inner_weight = fields.array<float>("inner_weight", channels);
    step.inner_bias = fields.array<float>("inner_bias", channels);
    step.inner_eps = fields.real("inner_eps");
    step.tokens = fields.place<float>("tokens", times({rows, channels}));
    step.out = fields.place<float>("out_tokens", times({rows, channels}));
    if (!step.projected || !step.inner_weight || !step.inner_bias || !step.tokens || !step.out)
        throw py::value_error("couple needs projected, inner_weight, inner_bias, tokens and out_tokens");
    step.norm = norm_of(fields, step.out, rows, channels);
    step.norm.row_step = channels;
    fields.add(step);
}

void attention(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Attention step{};
    step.images = fields.number("images");
    step.tokens = fields.number("tokens");
    step.heads = fields.number("heads");
    step.size = fields.lanes("size");
    step.scale = fields.real("scale");
    if (step.tokens > kMostTokens)
        throw py::value_error("tokens must be at most " + std::to_string(kMostTokens) + ", got " +
                              std::to_string(step.tokens));
    if (step.size > kDepth)
        throw py::value_error("size must be at most " + std::to_string(kDepth) + ", got " + std::to_string(step.size));
    const Index rows = times({step.images, step.tokens}), channels = times({step.heads, step.size});
    step.qkv = fields.place<std::uint8_t>("qkv", times({rows + kBlock, 3, channels}) + kDepth);
    step.out = fields.place<std::uint8_t>("out", times({rows, channels}));
    step.out_floats = fields.place<float>("out_values", times({rows, channels}));
    step.out_numbers = fields.numbers("out_numbers");
    if (!step.qkv || !(step.out || step.out_floats)) throw py::value_error("attention needs qkv and out or out_values");
    fields.add(step);
}

void picture(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Picture step{};
    step.count = kept.program.images();
    step.channels = fields.number("channels");
    step.height = fields.number("height");
    step.width = fields.number("width");
    step.padded_width = fields.number("padded_width", step.width + 6);
    if (step.channels > 4) throw py::value_error("channels must be at most 4, got " + std::to_string(step.channels));
    step.out = fields.place<std::uint8_t>("out", times({step.count, step.height + 6, step.padded_width, 4}));
    step.numbers = fields.numbers("numbers");
    if (!step.out) throw py::value_error("a picture needs out");
    if (kept.values_in_an_image) throw py::value_error("a program reads pictures once");
    fields.add(step);
    kept.values_in_an_image = step.channels * step.height * step.width;
}

void max_pool(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    MaxPool step{};
    step.images = fields.number("images");
    step.height = fields.number("height");
    step.width = fields.number("width");
    step.channels = fields.lanes("channels");
    step.out_height = fields.number("out_height", (step.height + 1) / 2);
    step.out_width = fields.number("out_width", (step.width + 1) / 2);
    step.in = fields.place<std::uint8_t>("in", times({step.images, step.height, step.width, step.channels}));
    step.out = fields.place<std::uint8_t>("out", times({step.images, step.out_height, step.out_width, step.channels}));
    if (!step.in || !step.out) throw py::value_error("max_pool needs in and out");
    fields.add(step);
}

void average(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Average step{};
    step.images = fields.number("images");
    step.height = fields.number("height");
    step.width = fields.number("width");
    step.channels = fields.lanes("channels");
    step.stride = fields.number("stride");
    if (step.height % step.stride || step.width % step.stride)
        throw py::value_error("height and width must be multiples of stride");
    step.in = fields.place<std::uint8_t>("in", times({step.images, step.height, step.width, step.channels}));
    const Index pixels = (step.height / step.stride) * (step.width / step.stride);
    step.out = fields.place<std::uint8_t>("out", times({step.images, pixels, step.channels}));
    step.in_numbers = fields.numbers("in_numbers");
    step.out_numbers = fields.numbers("out_numbers");
    if (!step.in || !step.out) throw py::value_error("average needs in and out");
    fields.add(step);
}

void mean(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Mean step{};
    step.images = fields.number("images");
    step.pixels = fields.number("pixels");
    step.channels = fields.lanes("channels");
    step.in = fields.place<float>("in", times({step.images, step.pixels, step.channels}));
    step.out = fields.place<float>("out", step.images * step.channels);
    if (!step.in || !step.out) throw py::value_error("mean needs in and out");
    fields.add(step);
}

void quantize(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Quantize step{};
    step.count = fields.lanes("count");
    step.in = fields.place<float>("in", step.count);
    step.out = fields.place<std::uint8_t>("out", step.count);
    step.numbers = fields.numbers("numbers");
    if (!step.in || !step.out) throw py::value_error("quantize needs in and out");
    fields.add(step);
}

void copy(Kept& kept, const py::kwargs& given) {
    const Fields fields(kept, given);
    Copy step{};
    step.images = fields.number("images");
    step.image_step = fields.number("image_step");
    step.count = fields.number("count");
    step.step = fields.number("step");
    step.bytes = fields.number("bytes");
    const Index behind = fields.number("behind", 0);  // the place: what is copied to need not be aligned
    const Index reach =
        times({step.images - 1, step.image_step}) + times({step.count - 1, step.step}) + step.bytes;
    step.from = reinterpret_cast<const std::byte*>(fields.array<std::uint8_t>("from", step.bytes));
    step.out = fields.place<std::byte>("out", behind + reach);
    if (!step.from || !step.out) throw py::value_error("copy needs from and out");
    step.out += behind;
    fields.add(step);
}

void result(Kept& kept, Index offset, Index count) {
    py::kwargs given;
    given["from"] = offset;
    const Fields fields(kept, given);
    if (count < 1) throw py::value_error("count must be at least 1, got " + std::to_string(count));
    kept.program.add(Result{fields.place<float>("from", times({count, kept.program.images()})), count});
}

using Floats = py::array_t<float, py::array::c_style>;

// images: (B, ...), a multiple of what a program takes at once; out: for each result (B, ...).
void run(const std::vector<Kept*>& programs, const Floats& images, std::vector<Floats> out, int threads) {
    if (programs.empty() || threads < 1) throw py::value_error("there must be a program and a thread");
    if (std::set<Kept*>(programs.begin(), programs.end()).size() != programs.size())
        throw py::value_error("a program cannot run twice at a time");
    const Kept& one = *programs.front();
    const Index at_once = one.program.images(), batch = images.ndim() ? images.shape(0) : 0;
    if (!one.values_in_an_image || batch == 0 || batch % at_once || images.size() != batch * one.values_in_an_image)
        throw py::value_error("images must be (B, ...) of " + std::to_string(one.values_in_an_image) +
                              " values each, B a multiple of " + std::to_string(at_once) + ", got " +
                              std::string(py::str(images.attr("shape"))));
    for (const Kept* kept : programs)
        if (kept->program.images() != at_once || kept->values_in_an_image != one.values_in_an_image ||
            kept->program.results().size() != out.size())
            throw py::value_error("programs must take the same images and return as many results as there are out");
    std::vector<float*> to;
    for (std::size_t i = 0; i < out.size(); ++i) {
        for (const Kept* kept : programs)
            if (out[i].size() != batch * kept->program.results()[i].count)
                throw py::value_error("out " + std::to_string(i) + " must have " +
                                      std::to_string(kept->program.results()[i].count) + " values an image");
        to.push_back(out[i].mutable_data());
    }
    const float* from = images.data();
    const py::gil_scoped_release release;
    const auto run_part = [&](const Kept& kept, Index part, std::size_t team) {
        std::vector<float*> there;
        for (std::size_t i = 0; i < to.size(); ++i)
            there.push_back(to[i] + part * at_once * kept.program.results()[i].count);
        kept.program.run(from + part * at_once * kept.values_in_an_image, there, team);
    };
    const Index parts = batch / at_once;
    if (programs.size() == 1) {
        for (Index part = 0; part < parts; ++part) run_part(one, part, static_cast<std::size_t>(threads));
        return;
    }
    std::atomic<Index> next{0};
    in_parallel(programs.size(), programs.size(), [&](std::size_t which) {
        for (Index part = next++; part < parts; part = next++) run_part(*programs[which], part, 1);
    });
}

}  // namespace

void add_int8(py::module_& module) {
    module.def("int8_instruction_sets", &instruction_sets,
               "What products of 8 bits can run by here, the fastest first: amx, avx512, portable.");
    py::class_<Kept>(module, "Int8Program",
                     "The steps of a Conformer in 8 bits for images of one size. Each is added with the fields of its "
                     "struct in csrc/int8.h, by name: offsets in the program's memory, arrays, or numbers.")
        .def(py::init<const std::string&, Index, Index>(), py::arg("instructions"), py::arg("bytes"), py::arg("images"))
        .def("product", &product)
        .def("norm", &norm)
        .def("couple", &couple)
        .def("attention", &attention)
        .def("picture", &picture)
        .def("max_pool", &max_pool)
        .def("average", &average)
        .def("mean", &mean)
        .def("quantize", &quantize)
        .def("copy", &copy)
        .def("result", &result, py::arg("offset"), py::arg("count"));
    module.def("int8_run", &run, py::arg("programs").noconvert(), py::arg("images"), py::arg("out").noconvert(),
               py::arg("threads"), R"(
Runs images (B, ...) through programs that are equal, and fills out. One program is run by all threads; of several each
by one, on other images. None may run in two calls at a time. The GIL is released.)");
}

}  // namespace conformer_fast
