// From a picture to the network's input: resize, cut out the window, normalize and lay out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "passes.h"

namespace conformer_fast {

struct Picture {
    std::vector<const std::uint8_t*> strips;  // of strip_rows rows each, without gaps; the last may hold fewer
    std::int32_t strip_rows;
    bool roomy;  // kOverread bytes behind each strip may be read; else there is one strip
    std::int32_t width;
    std::int32_t height;
    int pixel_size;  // 3: RGB; 4: RGB and a byte that is not used
    std::int32_t new_width;
    std::int32_t new_height;
    std::int32_t left;  // of the window in the resized picture
    std::int32_t top;
    bool vertical_first;  // which pass comes first: each rounds to 8 bits, so that the order shows
};

struct Layout {
    std::int32_t size;        // the window is size x size
    bool channels_last;       // (size, size, 3), else (3, size, size)
    const std::byte* values;  // (3, 256): what replaces each level of each channel; nullptr: the level itself
    int value_size;           // bytes of a value: 1, 2 or 4

    std::size_t bytes() const { return std::size_t{3} * size * size * value_size; }
};

// Writes the window of `picture`, `layout.bytes()` bytes. Only its pixels are computed.
void resample(const Picture& picture, const Layout& layout, const Passes& passes, std::byte* out);

}  // namespace conformer_fast
