// What Python sees of winograd.h. Everything is checked here, before threads start and without the GIL.
#include "winograd_module.h"

#include <pybind11/numpy.h>

#ifdef __linux__
#include <sched.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "parallel.h"
#include "winograd.h"

namespace conformer_fast {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// While there is one, the calling thread may use the cores of the process's first one, and so may threads that it
// starts. OpenVINO binds each of its threads to a core, where those would wait for it.
class Unbound {
public:
#ifdef __linux__
    Unbound() {
        cpu_set_t all;
        known_ = sched_getaffinity(0, sizeof before_, &before_) == 0 && sched_getaffinity(getpid(), sizeof all, &all) == 0;
        if (known_) sched_setaffinity(0, sizeof all, &all);
    }

    ~Unbound() {
        if (known_) sched_setaffinity(0, sizeof before_, &before_);
    }

private:
    cpu_set_t before_;
    bool known_;
#endif
};

// Memory for a thread's tiles. It is kept for the next convolution: pages that the system must make anew cost more than
// reading the tiles. Nothing waits for the lock: in a process that was forked while a thread had it, none gives it back.
class Memory {
public:
    explicit Memory(std::size_t values) {
        {
            const std::unique_lock<std::mutex> guard(lock_, std::try_to_lock);
            if (guard && !kept_.empty()) {
                values_ = std::move(kept_.back());
                kept_.pop_back();
            }
        }
        if (values_.size() < values + kLine) values_ = std::vector<float>(values + kLine);
    }

    ~Memory() {
        const std::unique_lock<std::mutex> guard(lock_, std::try_to_lock);
        try {
            if (guard) kept_.push_back(std::move(values_));
        } catch (const std::bad_alloc&) {  // then it is not kept
        }
    }

    float* aligned() {
        void* first = values_.data();
        std::size_t space = values_.size() * sizeof(float);
        return static_cast<float*>(std::align(kLine * sizeof(float), 1, first, space));
    }

private:
    static constexpr std::size_t kLine = 16;  // values in a line of the cache

    inline static std::mutex lock_;
    inline static std::vector<std::vector<float>> kept_;

    std::vector<float> values_;
};

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

Floats transformed(const Floats& weights) {
    if (weights.ndim() != 4 || weights.shape(2) != 3 || weights.shape(3) != 3 || weights.size() == 0 ||
        weights.shape(0) % kPanel || weights.shape(1) % kPanel)
        throw py::value_error("weights must have shape (K, C, 3, 3), K and C multiples of " + std::to_string(kPanel) +
                              ", got " + shape_of(weights));
    const py::ssize_t outputs = weights.shape(0), channels = weights.shape(1);
    Floats out({py::ssize_t{kPoints}, outputs / kPanel, channels, py::ssize_t{kPanel}});
    const float* from = weights.data();
    float* to = out.mutable_data();
    py::gil_scoped_release release;
    winograd_weights(from, outputs, channels, to);
    return out;
}

const WinogradKernel& kernel_of(const std::string& name) {
    for (const WinogradKernel* kernel : {&kWinogradAvx512, &kWinogradAvx2, &kWinogradPortable})
        if (kernel->supported() && (name.empty() || name == kernel->name)) return *kernel;
    throw py::value_error("no instruction set '" + name + "' on this machine");
}

Winograd checked(const Floats& maps, const Floats& weights, const Floats& bias, bool relu, Floats& out) {
    if (maps.ndim() != 4 || maps.shape(3) == 0 || maps.shape(3) % kPanel)
        throw py::value_error("maps must have shape (B, H, W, C), C a multiple of " + std::to_string(kPanel) +
                              ", got " + shape_of(maps));
    const py::ssize_t channels = maps.shape(3), outputs = bias.size();
    if (bias.ndim() != 1 || outputs == 0 || outputs % kPanel)
        throw py::value_error("bias must have shape (K,), K a multiple of " + std::to_string(kPanel) + ", got " +
                              shape_of(bias));
    if (weights.ndim() != 4 || weights.shape(0) != kPoints || weights.shape(1) != outputs / kPanel ||
        weights.shape(2) != channels || weights.shape(3) != kPanel)
        throw py::value_error("weights must be winograd_weights of (K, C, 3, 3), with the bias's K and the maps' C, got " +
                              shape_of(weights));
    if (out.ndim() != 4 || out.shape(0) != maps.shape(0) || out.shape(1) != maps.shape(1) ||
        out.shape(2) != maps.shape(2) || out.shape(3) != outputs)
        throw py::value_error("out must have shape (B, H, W, K), got " + shape_of(out));
    return {maps.data(),   weights.data(), bias.data(), out.mutable_data(), maps.shape(0),
            maps.shape(1), maps.shape(2),  channels,    outputs,            relu};
}

void winograd(const Floats& maps, const Floats& weights, const Floats& bias, bool relu, Floats out, int threads,
              const std::string& instructions) {
    if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
    const WinogradKernel& kernel = kernel_of(instructions);
    const Winograd conv = checked(maps, weights, bias, relu, out);
    py::gil_scoped_release release;
    const std::ptrdiff_t tiles = conv.tiles(), share = (tiles + threads - 1) / threads;
    const std::ptrdiff_t together = share > kMost ? kTiles : std::max<std::ptrdiff_t>(share, 1);
    const auto workers = static_cast<std::size_t>(std::clamp<std::ptrdiff_t>((tiles + together - 1) / together, 1, threads));
    std::atomic<std::ptrdiff_t> next{0};
    const Unbound unbound;
    in_parallel(workers, workers, [&](std::size_t) {  // each with memory of its own
        Memory memory(static_cast<std::size_t>(kPoints * together * (conv.channels + conv.outputs)));
        for (std::ptrdiff_t first = next.fetch_add(together); first < tiles; first = next.fetch_add(together))
            kernel.make(conv, first, std::min(together, tiles - first), memory.aligned());
    });
}

}  // namespace

void add_winograd(py::module_& module) {
    module.def("winograd_weights", &transformed, py::arg("weights").noconvert(), R"(
(K, C, 3, 3) float32, K and C multiples of 32, as `winograd` reads them: (36, K / 32, C, 32).

Raises TypeError and ValueError for others.)");
    module.def("winograd", &winograd, py::arg("maps").noconvert(), py::arg("weights").noconvert(),
               py::arg("bias").noconvert(), py::arg("relu"), py::arg("out").noconvert(), py::arg("threads"),
               py::arg("instructions") = "", R"(
Fills out (B, H, W, K) with the 3x3 convolution of maps (B, H, W, C), zeros around them, stride 1, by F(4x4, 3x3).

weights:      of winograd_weights
bias:         (K,)
relu:         whether what is below 0 becomes 0
threads:      at most so many; the GIL is released
instructions: avx512, avx2 or portable, "" for the fastest here

All are float32 and contiguous. Raises TypeError and ValueError for arguments that do not fit together, before anything
is written.)");
}

}  // namespace conformer_fast
