// Plain C++: what the vector units must equal. Sums are unsigned, so that they wrap as theirs do.
#include <cstring>

#include "passes.h"

namespace conformer_fast {
namespace {

void encode(const std::int32_t weights[kGroup], std::int32_t words[kGroup]) {
    std::memcpy(words, weights, kGroup * sizeof *words);
}

template <int pixel_size>
void resize_row(const std::uint8_t* row, const Axis& axis, std::uint8_t* out) {
    for (const Taps& taps : axis.taps) {
        const std::int32_t* words = axis.words.data() + taps.first_word;
        const std::uint8_t* pixel = row + std::ptrdiff_t{taps.start} * pixel_size;
        std::uint32_t red = 0, green = 0, blue = 0;
        for (std::int32_t t = 0; t < kGroup * taps.groups; ++t, pixel += pixel_size) {
            const auto weight = static_cast<std::uint32_t>(words[t]);
            red += weight * pixel[0];
            green += weight * pixel[1];
            blue += weight * pixel[2];
        }
        *out++ = to_pixel(red);
        *out++ = to_pixel(green);
        *out++ = to_pixel(blue);
    }
}

void horizontal(const std::uint8_t* const rows[kRows], int pixel_size, const Axis& axis,
                std::uint8_t* const out[kRows]) {
    for (int row = 0; row < kRows; ++row)
        pixel_size == 3 ? resize_row<3>(rows[row], axis, out[row]) : resize_row<4>(rows[row], axis, out[row]);
}

void vertical(const std::uint8_t* const* rows, std::int32_t groups, const std::int32_t* words, std::uint8_t* out,
              std::ptrdiff_t bytes) {
    for (std::ptrdiff_t block = 0; block < bytes; block += kAlignment) {
        std::uint32_t sums[kAlignment] = {};
        for (std::int32_t t = 0; t < kGroup * groups; ++t) {
            const auto weight = static_cast<std::uint32_t>(words[t]);
            for (int i = 0; i < kAlignment; ++i) sums[i] += weight * rows[t][block + i];
        }
        for (int i = 0; i < kAlignment; ++i) out[block + i] = to_pixel(sums[i]);
    }
}

}  // namespace

const Passes kPortable = {"portable", [] { return true; }, encode, horizontal, vertical};

}  // namespace conformer_fast
