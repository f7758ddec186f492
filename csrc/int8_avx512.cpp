// AVX-512 with VNNI: 8 rows by 32 columns of sums in 16 of 32 registers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "int8.h"
#include "x86.h"

namespace conformer_fast {
#ifdef CONFORMER_FAST_X86
namespace {

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define LANES_AVX512 1

#include "int8_lanes.h"

TARGET void multiply_block(const std::uint8_t* first, const std::uint8_t* second, Index row_step, const std::int32_t* tap,
                           Index taps, Index depths, const std::int8_t* panel, Index rows, bool more, std::int32_t* out) {
    constexpr int kRows = 8;
    constexpr Index kGroup = 4, kHalf = kDepth * kTile, kLine = 64;
    for (Index row = 0; row < rows; row += kRows) {
        const std::uint8_t* from = (row < kTile ? first : second) + row % kTile * row_step;
        const std::int8_t* weights = panel;
        __m512i sums[kRows][2] = {};
        for (int r = 0; more && r < kRows; ++r) {
            sums[r][0] = _mm512_loadu_si512(out + (row + r) * kBlock);
            sums[r][1] = _mm512_loadu_si512(out + (row + r) * kBlock + kLanes);
        }
        for (Index t = 0; t < taps; ++t)
            for (Index depth = 0; depth < depths; ++depth, weights += 2 * kHalf) {
                const std::uint8_t* numbers = from + tap[t] + depth * kDepth;
                for (Index group = 0; group < kDepth / kGroup; ++group, numbers += kGroup) {
                    const __m512i left = _mm512_loadu_si512(weights + group * kLine);
                    const __m512i right = _mm512_loadu_si512(weights + kHalf + group * kLine);
#pragma GCC unroll 8
                    for (int r = 0; r < kRows; ++r) {
                        std::int32_t four;
                        std::memcpy(&four, numbers + r * row_step, sizeof four);
                        const __m512i value = _mm512_set1_epi32(four);
                        sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], value, left);
                        sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], value, right);
                    }
                }
            }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            _mm512_storeu_si512(out + (row + r) * kBlock, sums[r][0]);
            _mm512_storeu_si512(out + (row + r) * kBlock + kLanes, sums[r][1]);
        }
    }
}

#include "int8_rows.h"

#include "int8_products.h"

bool supported() {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

void nothing() {}

}  // namespace

const Int8Kernels kInt8Avx512 = {"avx512", supported, nothing,  nothing, multiply, norm, couple,
                                 attention, picture,   max_pool, average, mean,     quantize};
#else
const Int8Kernels kInt8Avx512 = {"avx512", [] { return false; }};
#endif
}  // namespace conformer_fast
