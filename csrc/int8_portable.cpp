// What every CPU computes, with the numbers of the others.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "int8.h"

namespace conformer_fast {
#if defined(__GNUC__) || defined(__clang__)
namespace {

#define TARGET

#include "int8_lanes.h"

void multiply_block(const Block& block, std::int32_t* out, Ahead&) {
    constexpr Index kGroup = 4, kGroups = kDepth / kGroup;
    const Index depths = (block.depth + kDepth - 1) / kDepth;
    for (Index row = 0; row < block.rows; ++row) {
        const std::uint8_t* from = (row < kTile ? block.first : block.second) + row % kTile * block.row_step;
        const std::int8_t* weights = block.panel;
        std::int32_t sums[kBlock] = {};
        if (block.more) std::memcpy(sums, out + row * kBlock, sizeof sums);
        for (Index t = 0; t < block.taps; ++t)
            for (Index i = 0; i < depths * 2 * kGroups; ++i, weights += kGroup * kTile) {
                const Index depth = i / (2 * kGroups), half = i / kGroups % 2, group = i % kGroups;
                const std::uint8_t* numbers = from + block.tap[t] + depth * kDepth + group * kGroup;
                std::int32_t* const to = sums + half * kTile;
                for (Index column = 0; column < kTile; ++column)
                    for (Index number = 0; number < kGroup; ++number)
                        to[column] += numbers[number] * weights[column * kGroup + number];
            }
        std::memcpy(out + row * kBlock, sums, sizeof sums);
    }
}

#include "int8_rows.h"

#include "int8_products.h"

void nothing() {}

}  // namespace

const Int8Kernels kInt8Portable = {"portable", [] { return true; }, nothing,  nothing, multiply, norm, couple,
                                   attention,  picture,             max_pool, average, mean,     quantize};
#else
const Int8Kernels kInt8Portable = {"portable", [] { return false; }};
#endif
}  // namespace conformer_fast
