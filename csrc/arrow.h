// The pixels of a Pillow image without a copy, through the Arrow C data interface that Pillow offers since 11.2.
#pragma once

#include <cstdint>

namespace conformer_fast {

struct Memory {
    const std::uint8_t* pixels;  // four bytes each; they live as long as the capsules
    std::int64_t count;
};

// What the ArrowSchema and the ArrowArray that Image.__arrow_c_array__() returns describe. Throws
// std::invalid_argument for any other memory.
Memory memory_of(const void* arrow_schema, const void* arrow_array);

}  // namespace conformer_fast
