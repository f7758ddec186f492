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

// Not inlined: by itself it has registers enough for the places of eight rows.
TARGET __attribute__((noinline)) void multiply_block(const Block& block, std::int32_t* out, Ahead& ahead) {
    constexpr int kRows = 8;
    constexpr Index kGroup = 4, kHalf = kDepth * kTile, kLine = 64;
    const Index row_step = block.row_step;
    Ahead fetched = ahead;
    for (Index row = 0; row < block.rows; row += kRows) {
        const std::uint8_t* from = (row < kTile ? block.first : block.second) + row % kTile * row_step;
        const std::int8_t* panel = block.panel;
        __m512i sums[kRows][2];  // in registers, as all loops over them are unrolled
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            std::int32_t* const to = out + (row + r) * kBlock;
            sums[r][0] = block.more ? _mm512_loadu_si512(to) : _mm512_setzero_si512();
            sums[r][1] = block.more ? _mm512_loadu_si512(to + kLanes) : _mm512_setzero_si512();
        }
        for (Index t = 0; t < block.taps; ++t)
            for (Index start = 0; start < block.depth; start += kDepth, panel += 2 * kHalf) {
                const std::uint8_t* numbers = from + block.tap[t] + start;
                const Index groups = (std::min(kDepth, block.depth - start) + kGroup - 1) / kGroup;
                fetch(fetched);
                for (Index group = 0; group < groups; ++group, numbers += kGroup) {
                    const __m512i left = _mm512_loadu_si512(panel + group * kLine);
                    const __m512i right = _mm512_loadu_si512(panel + kHalf + group * kLine);
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
    ahead = fetched;
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
