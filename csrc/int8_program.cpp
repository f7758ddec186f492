#include "int8_program.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>

#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace conformer_fast {
namespace {

constexpr Index kLine = 64;  // bytes

// Where threads wait for each other after each step. A step is short, so they spin before they let others run.
class Meeting {
public:
    void wait(std::size_t threads) {
        const std::size_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins > kSpins) std::this_thread::yield();
    }

private:
    static constexpr int kSpins = 4000;

    std::atomic<std::size_t> arrived_{0}, round_{0};
};

Index blocks(Index count) { return (count + kBlock - 1) / kBlock; }

Index items(const Product& step) { return blocks(step.rows) * blocks(step.columns); }
Index items(const Norm& step) { return step.rows; }
Index items(const Couple& step) { return step.norm.rows; }
Index items(const Attention& step) { return step.images * step.heads; }
Index items(const Picture& step) { return step.count * (step.height + 6); }
Index items(const MaxPool& step) { return step.images * step.out_height; }
Index items(const Average& step) { return step.images * (step.height / step.stride); }
Index items(const Mean& step) { return step.images; }
Index items(const Quantize& step) { return step.count / kLanes; }
Index items(const Copy& step) { return step.images; }

struct Worker {
    const Int8Kernels& kernels;
    const float* images;
    std::byte* scratch;
    Index first, last;
    Ahead& ahead;

    void operator()(const Product& step) const { kernels.product(step, first, last, ahead); }
    void operator()(const Norm& step) const { kernels.norm(step, first, last); }
    void operator()(const Couple& step) const { kernels.couple(step, first, last); }
    void operator()(const Attention& step) const { kernels.attention(step, first, last, scratch, ahead); }
    void operator()(Picture step) const {
        step.images = images;
        kernels.picture(step, first, last);
    }
    void operator()(const MaxPool& step) const { kernels.max_pool(step, first, last); }
    void operator()(const Average& step) const { kernels.average(step, first, last); }
    void operator()(const Mean& step) const { kernels.mean(step, first, last); }
    void operator()(const Quantize& step) const { kernels.quantize(step, first, last); }
    void operator()(const Copy& step) const {
        for (Index image = first; image < last; ++image)
            for (Index i = 0; i < step.count; ++i)
                std::memcpy(step.out + image * step.image_step + i * step.step, step.from,
                            static_cast<std::size_t>(step.bytes));
    }
};

// A step's items of one of several threads.
struct Share {
    Index first, last;

    Share(Index items, std::size_t thread, std::size_t of)
        : first(items * static_cast<Index>(thread) / static_cast<Index>(of)),
          last(items * static_cast<Index>(thread + 1) / static_cast<Index>(of)) {}
};

// The weights that a share of the next product reads, up to 1 MiB: a core's second cache holds the values beside.
Ahead ahead_of(const Step* step, const Step* end, std::size_t thread, std::size_t of) {
    constexpr Index kMost = 1 << 20;
    if (step == end) return {};
    const Product& product = std::get<Product>(*step);
    const char* const weights = static_cast<const char*>(product.weights);
    const Share share(items(product), thread, of);
    if (share.first == share.last) return {};
    const Index panel = panel_bytes(product), down = blocks(product.rows);
    if (!shared_by_columns(product)) return {weights, weights + std::min(blocks(product.columns) * panel, kMost)};
    const Index begin = share.first / down * panel, end_of_it = (share.last + down - 1) / down * panel;
    return {weights + begin, weights + std::min(end_of_it, begin + kMost)};
}

bool is_product(const Step& step) { return std::holds_alternative<Product>(step); }

std::byte* aligned(std::byte* memory) {
    return memory + (kLine - reinterpret_cast<std::uintptr_t>(memory) % kLine) % kLine;
}

constexpr std::align_val_t kPage{std::size_t{1} << 21};

// In large pages, where the system has them: finding small ones costs more than some steps do.
std::byte* allocated(std::size_t bytes) {
    void* memory = ::operator new(bytes, kPage);
#ifdef __linux__
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<std::byte*>(std::memset(memory, 0, bytes));
}

void give_back(std::byte* memory) { ::operator delete(memory, kPage); }

}  // namespace

Program::Program(const Int8Kernels& kernels, Index bytes, Index images)
    : kernels_(kernels),
      bytes_(bytes),
      images_(images),
      memory_(allocated(static_cast<std::size_t>(bytes)), give_back) {}

void Program::add(const Step& step) {
    if (const auto* attention = std::get_if<Attention>(&step))
        scratch_ = std::max(scratch_, attention_scratch(attention->tokens, attention->size));
    most_items_ = std::max(most_items_, std::visit([](const auto& one) { return items(one); }, step));
    steps_.push_back(step);
}

void Program::run(const float* images, const std::vector<float*>& out, std::size_t threads) const {
    threads = std::min(threads, static_cast<std::size_t>(std::max(most_items_, Index{1})));
    Meeting meeting;
    std::vector<std::vector<std::byte>> scratch(threads);
    for (auto& memory : scratch) memory.resize(static_cast<std::size_t>(scratch_ + kLine));
    together(threads, [&](std::size_t thread, std::size_t of) {
        kernels_.begin();
        Ahead ahead;
        const Step *const end = steps_.data() + steps_.size(), *reading = steps_.data();
        for (const Step* step = steps_.data(); step < end; ++step) {
            if (step == reading) {  // its weights are near, or will not be
                reading = std::find_if(step + 1, end, is_product);
                ahead = ahead_of(reading, end, thread, of);
            }
            const Share share(std::visit([](const auto& one) { return items(one); }, *step), thread, of);
            const Worker worker{kernels_, images, aligned(scratch[thread].data()), share.first, share.last, ahead};
            if (share.first < share.last) std::visit(worker, *step);
            if (of > 1) meeting.wait(of);
        }
        kernels_.end();
    });
    for (std::size_t i = 0; i < results_.size(); ++i)
        std::memcpy(out[i], results_[i].from, static_cast<std::size_t>(results_[i].count * images_) * sizeof(float));
}

}  // namespace conformer_fast
