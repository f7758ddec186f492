// Which pixels of a line make each pixel of the resized line, and with which weights: Pillow's antialiased bicubic.
#pragma once

#include <cstdint>
#include <vector>

namespace conformer_fast {

constexpr int kPrecisionBits = 22;  // weights are integers of 2^-22: 32 bits less 8 for a pixel and 2 for overshoot
constexpr int kGroup = 4;           // taps are padded with weights of 0 to groups of four, as the vector units take them

// Rewrites the four weights of a group as the four words that an instruction set multiplies with.
using Encode = void (*)(const std::int32_t weights[kGroup], std::int32_t words[kGroup]);

// One resized pixel: `groups` groups of taps from pixel `start` on; its words are words[first_word...].
struct Taps {
    std::int32_t start;
    std::int32_t groups;
    std::int64_t first_word;
};

struct Axis {
    std::vector<Taps> taps;  // one for each pixel of the window, in order: starts never decrease
    std::vector<std::int32_t> words;

    // One past the last pixel that any tap reads; those of padding may lie behind the line's end.
    std::int32_t end() const;
    // The most pixels that one resized pixel reads, padding included.
    std::int32_t most() const;
};

// The pixels first ... first + count - 1 of a line of `length` resized to `new_length`.
Axis coefficients(std::int32_t length, std::int32_t new_length, std::int32_t first, std::int32_t count, Encode encode);

}  // namespace conformer_fast
