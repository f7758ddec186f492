#include "regions.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace conformer_fast {
namespace {

float area(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

float overlap(const Box& box, const Box& other) {
    const float width = std::max(std::min(box.x2, other.x2) - std::max(box.x1, other.x1), 0.0f);
    const float height = std::max(std::min(box.y2, other.y2) - std::max(box.y1, other.y1), 0.0f);
    const float shared = width * height;
    return shared / (area(box) + area(other) - shared);
}

// What the pixels first ... end - 1 along an axis count in one cell.
struct Cell {
    std::int64_t first, end;
    std::vector<float> weights;
};

std::vector<Cell> cells_of(float start, float stop, std::int32_t side, std::int64_t size) {
    const float extent = (stop - start) / side;
    const auto samples = static_cast<std::int64_t>(std::max(std::ceil(extent), 0.0f));
    std::vector<Cell> cells(side, Cell{0, 0, {}});
    std::vector<float> line(size);
    for (std::int32_t i = 0; i < side; ++i) {
        Cell& cell = cells[i];
        std::fill(line.begin(), line.end(), 0.0f);
        cell.first = size;
        for (std::int64_t sample = 0; sample < samples; ++sample) {
            float place = start + (i + (sample + 0.5f) / samples) * extent;
            if (!(place >= -1.0f && place <= size)) continue;
            place = std::min(std::max(place, 0.0f), static_cast<float>(size - 1));
            const auto low = static_cast<std::int64_t>(place);
            const std::int64_t high = std::min(low + 1, size - 1);
            const float share = place - low;
            line[low] += (1.0f - share) / samples;
            line[high] += share / samples;
            cell.first = std::min(cell.first, low);
            cell.end = std::max(cell.end, high + 1);
        }
        cell.first = std::min(cell.first, cell.end);
        cell.weights.assign(line.begin() + cell.first, line.begin() + cell.end);
    }
    return cells;
}

void add_times(float* sums, const float* values, float weight, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) sums[i] += weight * values[i];
}

}  // namespace

void keep_best(const Box* boxes, std::size_t count, float threshold, bool* kept) {
    std::fill(kept, kept + count, true);
    for (std::size_t i = 0; i < count; ++i) {
        if (!kept[i]) continue;
        for (std::size_t j = i + 1; j < count; ++j)
            if (kept[j] && overlap(boxes[i], boxes[j]) > threshold) kept[j] = false;
    }
}

void align(const FeatureMap& map, const Box& region, std::int32_t side, float* out) {
    const std::vector<Cell> rows = cells_of(region.y1, region.y2, side, map.height);
    const std::vector<Cell> columns = cells_of(region.x1, region.x2, side, map.width);
    std::int64_t left = map.width, right = 0;
    for (const Cell& column : columns) {
        if (column.first == column.end) continue;
        left = std::min(left, column.first);
        right = std::max(right, column.end);
    }
    left = std::min(left, right);
    const std::int64_t channels = map.channels;
    std::vector<float> line((right - left) * channels);  // bilinear weights are products of a row's and a column's
    for (const Cell& row : rows) {
        std::fill(line.begin(), line.end(), 0.0f);
        for (std::int64_t y = row.first; y < row.end; ++y)
            add_times(line.data(), map.values + (y * map.width + left) * channels, row.weights[y - row.first],
                      static_cast<std::int64_t>(line.size()));
        for (const Cell& column : columns) {
            std::fill(out, out + channels, 0.0f);
            for (std::int64_t x = column.first; x < column.end; ++x)
                add_times(out, line.data() + (x - left) * channels, column.weights[x - column.first], channels);
            out += channels;
        }
    }
}

}  // namespace conformer_fast
