// A detector's regions: which boxes are kept, and what a map holds in each. The arithmetic is that of
// conformer_fast/model/detector/operators.py, in float.
#pragma once

#include <cstddef>
#include <cstdint>

namespace conformer_fast {

struct Box {
    float x1, y1, x2, y2;
};

// From the first on, each kept box removes the later ones of its group that overlap it by more than `threshold`.
void keep_best(const Box* boxes, const std::int64_t* groups, std::size_t count, float threshold, bool* kept);

struct FeatureMap {
    const float* values;  // (height, width, channels)
    std::int64_t height, width, channels;
};

// The means of bilinear samples in side x side cells of a region, which is in pixels of the map; (side, side, channels).
void align(const FeatureMap& map, const Box& region, std::int32_t side, float* out);

}  // namespace conformer_fast
