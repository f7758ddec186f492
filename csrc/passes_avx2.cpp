// AVX2: vpmaddwd multiplies pairs of 16-bit numbers. A weight w of 24 bits is high * 2^12 + low, each of 16 bits at most;
// the sums of both parts are exact, or wrap as the sum of whole products would.
#include "passes.h"
#include "x86.h"

#ifdef CONFORMER_FAST_X86
#define TARGET __attribute__((target("avx2")))
#define INLINE inline __attribute__((target("avx2"), always_inline))

namespace conformer_fast {
namespace {

constexpr int kLowBits = 12;

bool supported() { return __builtin_cpu_supports("avx2"); }

// high of taps 0 and 1, low of 0 and 1, high of 2 and 3, low of 2 and 3
void encode(const std::int32_t weights[kGroup], std::int32_t words[kGroup]) {
    for (int pair = 0; pair < 2; ++pair) {
        std::uint32_t high = 0, low = 0;
        for (int t = 1; t >= 0; --t) {
            const std::int32_t weight = weights[2 * pair + t];
            high = high << 16 | (static_cast<std::uint32_t>(weight >> kLowBits) & 0xFFFF);
            low = low << 16 | (static_cast<std::uint32_t>(weight) & ((1 << kLowBits) - 1));
        }
        words[2 * pair] = static_cast<std::int32_t>(high);
        words[2 * pair + 1] = static_cast<std::int32_t>(low);
    }
}

struct Sums {
    __m256i high, low;
};

INLINE void add(Sums& sums, __m256i pairs, __m256i high, __m256i low) {
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(pairs, high));
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(pairs, low));
}

INLINE __m256i values(const Sums& sums) {
    const __m256i half = _mm256_set1_epi32(1 << (kPrecisionBits - 1));
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(sums.high, kLowBits), _mm256_add_epi32(sums.low, half));
    return _mm256_srai_epi32(sum, kPrecisionBits);
}

INLINE __m256i two_rows(const std::uint8_t* first, const std::uint8_t* second) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
}

INLINE void store_pixel(std::uint8_t* out, std::int32_t pixel) { __builtin_memcpy(out, &pixel, sizeof pixel); }

// A lane of 128 bits holds one row: its 32-bit elements are the channels, each the sum of a pair of taps.
template <int pixel_size>
TARGET void resize_rows(const std::uint8_t* const rows[kRows], const Axis& axis, std::uint8_t* const out[kRows]) {
    constexpr int p = pixel_size;
    const __m256i taps_0_1 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, p, -1, 1, -1, p + 1, -1, 2, -1, p + 2, -1, -1, -1, -1, -1));
    const __m256i taps_2_3 = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        2 * p, -1, 3 * p, -1, 2 * p + 1, -1, 3 * p + 1, -1, 2 * p + 2, -1, 3 * p + 2, -1, -1, -1, -1, -1));
    std::ptrdiff_t at = 0;
    for (const Taps& taps : axis.taps) {
        const std::int32_t* words = axis.words.data() + taps.first_word;
        std::ptrdiff_t byte = std::ptrdiff_t{taps.start} * pixel_size;
        Sums upper = {}, lower = {};
        for (std::int32_t group = 0; group < taps.groups; ++group, words += kGroup, byte += kGroup * pixel_size) {
            const __m256i pixels = two_rows(rows[0] + byte, rows[1] + byte);
            const __m256i more = two_rows(rows[2] + byte, rows[3] + byte);
            const __m256i high = _mm256_set1_epi32(words[0]), low = _mm256_set1_epi32(words[1]);
            add(upper, _mm256_shuffle_epi8(pixels, taps_0_1), high, low);
            add(lower, _mm256_shuffle_epi8(more, taps_0_1), high, low);
            const __m256i high_2 = _mm256_set1_epi32(words[2]), low_2 = _mm256_set1_epi32(words[3]);
            add(upper, _mm256_shuffle_epi8(pixels, taps_2_3), high_2, low_2);
            add(lower, _mm256_shuffle_epi8(more, taps_2_3), high_2, low_2);
        }
        const __m256i words_16 = _mm256_packs_epi32(values(upper), values(lower));  // rows 0 and 2, rows 1 and 3
        const __m256i bytes = _mm256_packus_epi16(words_16, words_16);
        store_pixel(out[0] + at, _mm256_extract_epi32(bytes, 0));
        store_pixel(out[1] + at, _mm256_extract_epi32(bytes, 4));
        store_pixel(out[2] + at, _mm256_extract_epi32(bytes, 1));
        store_pixel(out[3] + at, _mm256_extract_epi32(bytes, 5));
        at += 3;
    }
}

TARGET void horizontal(const std::uint8_t* const rows[kRows], int pixel_size, const Axis& axis,
                       std::uint8_t* const out[kRows]) {
    pixel_size == 3 ? resize_rows<3>(rows, axis, out) : resize_rows<4>(rows, axis, out);
}

TARGET void vertical(const std::uint8_t* const* rows, std::int32_t groups, const std::int32_t* words,
                     std::uint8_t* out, std::ptrdiff_t bytes) {
    const __m256i zero = _mm256_setzero_si256();
    for (std::ptrdiff_t at = 0; at < bytes; at += 32) {
        Sums sums[4] = {};
        for (std::int32_t pair = 0; pair < 2 * groups; ++pair) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[2 * pair] + at));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[2 * pair + 1] + at));
            const __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
            const __m256i high = _mm256_set1_epi32(words[2 * pair]), low = _mm256_set1_epi32(words[2 * pair + 1]);
            add(sums[0], _mm256_unpacklo_epi8(first, zero), high, low);
            add(sums[1], _mm256_unpackhi_epi8(first, zero), high, low);
            add(sums[2], _mm256_unpacklo_epi8(second, zero), high, low);
            add(sums[3], _mm256_unpackhi_epi8(second, zero), high, low);
        }
        const __m256i low = _mm256_packs_epi32(values(sums[0]), values(sums[1]));
        const __m256i high = _mm256_packs_epi32(values(sums[2]), values(sums[3]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), _mm256_packus_epi16(low, high));
    }
}

}  // namespace

const Passes kAvx2 = {"avx2", supported, encode, horizontal, vertical};

}  // namespace conformer_fast

#else

namespace conformer_fast {
const Passes kAvx2 = {"avx2", [] { return false; }, nullptr, nullptr, nullptr};
}

#endif
