// The pixels of a Pillow image without a copy, through the Arrow C data interface that Pillow offers since 11.2.
#pragma once

#include <cstdint>

#include <pybind11/pybind11.h>

namespace conformer_fast {

struct Memory {
    const std::uint8_t* pixels;  // four bytes each; they live as long as the capsules
    std::int64_t count;
};

// What is inside the two capsules that Image.__arrow_c_array__() returns. Raises ValueError for any other memory.
Memory memory_of(const pybind11::tuple& capsules);

}  // namespace conformer_fast
