// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned with a signed byte. A weight of 24 bits is
// two * 2^16 + one * 2^8 + zero, signed bytes; the sums of the three parts are exact, or wrap as the whole sum would.
#include "passes.h"
#include "x86.h"

#ifdef CONFORMER_FAST_X86
#define FEATURES "avx512f,avx512bw,avx512vnni"
#define TARGET __attribute__((target(FEATURES)))
#define INLINE inline __attribute__((target(FEATURES), always_inline))

namespace conformer_fast {
namespace {

constexpr int kParts = 3;

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
}

// word i: part i of the four taps; the last word is not used
void encode(const std::int32_t weights[kGroup], std::int32_t words[kGroup]) {
    for (int t = 0; t < kGroup; ++t) {
        std::int32_t rest = weights[t];
        for (int part = 0; part < kParts; ++part) {
            const auto digit = static_cast<std::int8_t>(rest & 0xFF);
            reinterpret_cast<std::int8_t*>(words + part)[t] = digit;
            rest = (rest - digit) / 256;
        }
    }
}

struct Sums {
    __m512i part[kParts];
};

INLINE void add(Sums& sums, __m512i pixels, const std::int32_t* words) {
    for (int part = 0; part < kParts; ++part)
        sums.part[part] = _mm512_dpbusd_epi32(sums.part[part], pixels, _mm512_set1_epi32(words[part]));
}

INLINE __m512i values(const Sums& sums) {
    const __m512i half = _mm512_set1_epi32(1 << (kPrecisionBits - 1));
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums.part[2], 16), _mm512_slli_epi32(sums.part[1], 8));
    return _mm512_srai_epi32(_mm512_add_epi32(upper, _mm512_add_epi32(sums.part[0], half)), kPrecisionBits);
}

INLINE __m128i load_128(const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

// A lane of 128 bits holds one row: its 32-bit elements are the channels, each of four taps.
template <int pixel_size>
TARGET void resize_rows(const std::uint8_t* const rows[kRows], const Axis& axis, std::uint8_t* const out[kRows]) {
    constexpr int p = pixel_size;
    const __m512i by_channel = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, p, 2 * p, 3 * p, 1, p + 1, 2 * p + 1, 3 * p + 1, 2, p + 2, 2 * p + 2, 3 * p + 2, -1, -1, -1, -1));
    std::ptrdiff_t at = 0;
    for (const Taps& taps : axis.taps) {
        const std::int32_t* words = axis.words.data() + taps.first_word;
        std::ptrdiff_t byte = std::ptrdiff_t{taps.start} * pixel_size;
        Sums sums = {};
        for (std::int32_t group = 0; group < taps.groups; ++group, words += kGroup, byte += kGroup * pixel_size) {
            __m512i pixels = _mm512_castsi128_si512(load_128(rows[0] + byte));
            pixels = _mm512_inserti32x4(pixels, load_128(rows[1] + byte), 1);
            pixels = _mm512_inserti32x4(pixels, load_128(rows[2] + byte), 2);
            pixels = _mm512_inserti32x4(pixels, load_128(rows[3] + byte), 3);
            add(sums, _mm512_shuffle_epi8(pixels, by_channel), words);
        }
        const __m512i zero = _mm512_setzero_si512();
        const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(values(sums), zero), zero);
        for (int row = 0; row < kRows; ++row) {
            const __m128i lane = row == 0   ? _mm512_castsi512_si128(bytes)
                                 : row == 1 ? _mm512_extracti32x4_epi32(bytes, 1)
                                 : row == 2 ? _mm512_extracti32x4_epi32(bytes, 2)
                                            : _mm512_extracti32x4_epi32(bytes, 3);
            const std::int32_t pixel = _mm_cvtsi128_si32(lane);
            __builtin_memcpy(out[row] + at, &pixel, sizeof pixel);
        }
        at += 3;
    }
}

TARGET void horizontal(const std::uint8_t* const rows[kRows], int pixel_size, const Axis& axis,
                       std::uint8_t* const out[kRows]) {
    pixel_size == 3 ? resize_rows<3>(rows, axis, out) : resize_rows<4>(rows, axis, out);
}

TARGET void vertical(const std::uint8_t* const* rows, std::int32_t groups, const std::int32_t* words,
                     std::uint8_t* out, std::ptrdiff_t bytes) {
    for (std::ptrdiff_t at = 0; at < bytes; at += 64) {
        Sums sums[4] = {};
        for (std::int32_t group = 0; group < groups; ++group) {
            const __m512i a = _mm512_loadu_si512(rows[kGroup * group] + at);
            const __m512i b = _mm512_loadu_si512(rows[kGroup * group + 1] + at);
            const __m512i c = _mm512_loadu_si512(rows[kGroup * group + 2] + at);
            const __m512i d = _mm512_loadu_si512(rows[kGroup * group + 3] + at);
            const __m512i first = _mm512_unpacklo_epi8(a, b), second = _mm512_unpackhi_epi8(a, b);
            const __m512i third = _mm512_unpacklo_epi8(c, d), fourth = _mm512_unpackhi_epi8(c, d);
            add(sums[0], _mm512_unpacklo_epi16(first, third), words + kGroup * group);
            add(sums[1], _mm512_unpackhi_epi16(first, third), words + kGroup * group);
            add(sums[2], _mm512_unpacklo_epi16(second, fourth), words + kGroup * group);
            add(sums[3], _mm512_unpackhi_epi16(second, fourth), words + kGroup * group);
        }
        const __m512i low = _mm512_packs_epi32(values(sums[0]), values(sums[1]));
        const __m512i high = _mm512_packs_epi32(values(sums[2]), values(sums[3]));
        _mm512_storeu_si512(out + at, _mm512_packus_epi16(low, high));
    }
}

}  // namespace

const Passes kAvx512 = {"avx512", supported, encode, horizontal, vertical};

}  // namespace conformer_fast

#else

namespace conformer_fast {
const Passes kAvx512 = {"avx512", [] { return false; }, nullptr, nullptr, nullptr};
}

#endif
