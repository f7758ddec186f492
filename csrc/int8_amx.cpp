// AMX: four tiles of 16 x 16 sums.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "int8.h"
#include "x86.h"

#if defined(CONFORMER_FAST_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define CONFORMER_FAST_AMX 1
#endif

namespace conformer_fast {
#ifdef CONFORMER_FAST_AMX
namespace {

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")))
#define LANES_AVX512 1

#include "int8_lanes.h"

TARGET void multiply_block(const Block& block, std::int32_t* out, Ahead& ahead) {
    constexpr Index kHalf = kDepth * kTile, kRow = kBlock * sizeof(std::int32_t);
    const bool both = block.rows > kTile;
    const std::int8_t* panel = block.panel;
    Ahead fetched = ahead;
    asm volatile("" ::: "memory");  // GCC does not know that loading a tile reads what was stored before
    if (block.more) {
        _tile_loadd(0, out, kRow);
        _tile_loadd(1, out + kTile, kRow);
        _tile_loadd(2, out + kTile * kBlock, kRow);
        _tile_loadd(3, out + kTile * kBlock + kTile, kRow);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (Index t = 0; t < block.taps; ++t) {
        const std::uint8_t *above = block.first + block.tap[t], *below = block.second + block.tap[t];
        for (Index i = 0; i < block.depth; i += kDepth, above += kDepth, below += kDepth, panel += 2 * kHalf) {
            fetch(fetched);
            _tile_loadd(4, above, block.row_step);
            _tile_loadd(6, panel, kDepth);
            _tile_dpbusd(0, 4, 6);
            _tile_loadd(7, panel + kHalf, kDepth);
            _tile_dpbusd(1, 4, 7);
            if (!both) continue;
            _tile_loadd(5, below, block.row_step);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    ahead = fetched;
    _tile_stored(0, out, kRow);
    _tile_stored(1, out + kTile, kRow);
    if (!both) return;
    _tile_stored(2, out + kTile * kBlock, kRow);
    _tile_stored(3, out + kTile * kBlock + kTile, kRow);
}

#include "int8_rows.h"

#include "int8_products.h"

// The system lets a process use the tiles' registers once it has asked for them.
bool supported() {
    constexpr int kAsk = 0x1023, kTileData = 18;
    static const bool found = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-tile") &&
                              syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
    return found;
}

struct Tiles {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {kDepth, kDepth, kDepth, kDepth, kDepth, kDepth, kDepth, kDepth};
    std::uint8_t rows[16] = {kTile, kTile, kTile, kTile, kTile, kTile, kTile, kTile};
};

// A constant: of one on the stack, GCC takes only the first 8 bytes for read, and leaves out the others.
const Tiles kTiles;

TARGET void begin() { _tile_loadconfig(&kTiles); }

TARGET void end() { _tile_release(); }

}  // namespace

const Int8Kernels kInt8Amx = {"amx",   supported, begin,    end,     multiply, norm, couple,
                              attention, picture,   max_pool, average, mean,     quantize};
#else
const Int8Kernels kInt8Amx = {"amx", [] { return false; }};
#endif
}  // namespace conformer_fast
