// The steps of a Conformer in 8 bits, for images of one size, and the memory that they work in.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "int8.h"

namespace conformer_fast {

using Step = std::variant<Product, Norm, Couple, Attention, Picture, MaxPool, Average, Mean, Quantize, Copy>;

// Where a result lies after the last step.
struct Result {
    const float* from;
    Index count;  // values an image
};

class Program {
public:
    // bytes: of memory; images: that one run takes
    Program(const Int8Kernels& kernels, Index bytes, Index images);

    // At `offset` of the memory, which is aligned to 64 bytes and zero at first.
    std::byte* at(Index offset) const { return memory_.get() + offset; }

    Index bytes() const { return bytes_; }
    Index images() const { return images_; }
    const std::vector<Result>& results() const { return results_; }
    const Int8Kernels& kernels() const { return kernels_; }
    void add(const Step& step);
    void add(const Result& result) { results_.push_back(result); }

    // images: `images()` of them; out: for each result, where `count` values of each image go. By one thread, or by
    // several that share each step.
    void run(const float* images, const std::vector<float*>& out, std::size_t threads) const;

private:
    const Int8Kernels& kernels_;
    Index bytes_, images_, scratch_ = 0, most_items_ = 0;
    std::unique_ptr<std::byte, void (*)(std::byte*)> memory_;
    std::vector<Step> steps_;
    std::vector<Result> results_;
};

}  // namespace conformer_fast
