// 3x3 convolutions by Winograd's F(4x4, 3x3): a tile of 4x4 results takes 36 products for each pair of channels, where
// the direct sum takes 144. (Winograd 1980; Lavin and Gray, arXiv 1509.09308.)
#pragma once

#include <cstddef>

namespace conformer_fast {

constexpr std::ptrdiff_t kPanel = 32;    // output channels whose weights lie together
constexpr std::ptrdiff_t kTileSide = 4;  // results of a tile, in each direction
constexpr std::ptrdiff_t kPoints = 36;   // products of a tile for a pair of channels
constexpr std::ptrdiff_t kTiles = 48;    // that are made together: what they take stays in a core's cache
constexpr std::ptrdiff_t kMost = 144;    // the same of a map with few: all weights are read for each such group

// Zeros around the maps, stride 1.
struct Winograd {
    const float* maps;     // (images, height, width, channels)
    const float* weights;  // (36, outputs / kPanel, channels, kPanel), see winograd_weights
    const float* bias;     // (outputs)
    float* out;            // (images, height, width, outputs)
    std::ptrdiff_t images, height, width, channels, outputs;  // the last two multiples of kPanel
    bool relu;

    std::ptrdiff_t rows() const { return (height + kTileSide - 1) / kTileSide; }
    std::ptrdiff_t columns() const { return (width + kTileSide - 1) / kTileSide; }
    std::ptrdiff_t tiles() const { return images * rows() * columns(); }
};

// Makes `count` tiles from the first on. memory: kPoints * count * (channels + outputs) values, aligned to 64 bytes.
using MakeTiles = void (*)(const Winograd& conv, std::ptrdiff_t first, std::ptrdiff_t count, float* memory);

struct WinogradKernel {
    const char* name;
    bool (*supported)();
    MakeTiles make;
};

extern const WinogradKernel kWinogradAvx512, kWinogradAvx2, kWinogradPortable;

// From (outputs, channels, 3, 3) to what Winograd::weights says.
void winograd_weights(const float* weights, std::ptrdiff_t outputs, std::ptrdiff_t channels, float* out);

}  // namespace conformer_fast
