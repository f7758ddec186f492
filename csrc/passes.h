// The two passes of a resize on each instruction set. All give the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "coefficients.h"

namespace conformer_fast {

constexpr int kRows = 4;        // the horizontal pass takes four rows at once
constexpr int kAlignment = 64;  // the vertical pass takes this many bytes at once
constexpr int kOverread = 64;   // bytes that a pass may read behind a row, and not use

struct Passes {
    const char* name;
    bool (*supported)();
    Encode encode;

    // Resizes kRows rows of pixels with `pixel_size` bytes (3, or 4 of which the last is not used) into rows of packed
    // RGB: axis.taps.size() pixels and one byte more, which is overwritten.
    void (*horizontal)(const std::uint8_t* const rows[kRows], int pixel_size, const Axis& axis,
                       std::uint8_t* const out[kRows]);

    // out[i] from byte i of kGroup * groups rows, for `bytes` bytes: a multiple of kAlignment.
    void (*vertical)(const std::uint8_t* const* rows, std::int32_t groups, const std::int32_t* words,
                     std::uint8_t* out, std::ptrdiff_t bytes);
};

extern const Passes kPortable, kAvx2, kAvx512;

// A sum of products with weights as a pixel: rounded to nearest and clipped.
inline std::uint8_t to_pixel(std::uint32_t sum) {
    const std::int32_t value = static_cast<std::int32_t>(sum + (1u << (kPrecisionBits - 1))) >> kPrecisionBits;
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

}  // namespace conformer_fast
