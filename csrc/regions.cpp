// What takes long is inlined into a function for AVX2 too. Without fused multiply-adds both give the same bits.
#include "regions.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "x86.h"

#ifdef CONFORMER_FAST_X86
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define AVX2 __attribute__((target("avx2")))
#else
#define ALWAYS_INLINE inline
#endif

namespace conformer_fast {
namespace {

// The boxes of one group, a side beside a side.
struct Group {
    std::vector<float> x1, y1, x2, y2, area;
    std::vector<std::int32_t> kept;

    explicit Group(std::size_t count) : x1(count), y1(count), x2(count), y2(count), area(count), kept(count, 1) {}

    void put(std::size_t i, const Box& box) {
        x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2;
        area[i] = (box.x2 - box.x1) * (box.y2 - box.y1);
    }
};

ALWAYS_INLINE void remove_overlapping(Group& group, std::size_t i, float threshold) {
    const float left = group.x1[i], top = group.y1[i], right = group.x2[i], bottom = group.y2[i], area = group.area[i];
    const float *x1 = group.x1.data(), *y1 = group.y1.data(), *x2 = group.x2.data(), *y2 = group.y2.data();
    const float* areas = group.area.data();
    std::int32_t* kept = group.kept.data();
    const std::size_t count = group.kept.size();
    for (std::size_t j = i + 1; j < count; ++j) {
        const float width = std::max(std::min(right, x2[j]) - std::max(left, x1[j]), 0.0f);
        const float height = std::max(std::min(bottom, y2[j]) - std::max(top, y1[j]), 0.0f);
        const float shared = width * height;
        kept[j] &= shared / (area + areas[j] - shared) > threshold ? 0 : 1;
    }
}

ALWAYS_INLINE void keep_best_of(Group& group, float threshold) {
    for (std::size_t i = 0; i < group.kept.size(); ++i)
        if (group.kept[i]) remove_overlapping(group, i, threshold);
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
        std::fill(line.begin() + cell.first, line.begin() + cell.end, 0.0f);
    }
    return cells;
}

// out[i] (+)= the sum of N weights times value i of N lines, one after another.
template <int N, bool kFirst>
ALWAYS_INLINE void add_lines(float* out, const float* values, std::int64_t stride, const float* weights,
                             std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        float sum = kFirst ? 0.0f : out[i];
        for (int line = 0; line < N; ++line) sum += weights[line] * values[line * stride + i];
        out[i] = sum;
    }
}

template <bool kFirst>
ALWAYS_INLINE void add_some(float* out, const float* values, std::int64_t stride, const float* weights,
                            std::int64_t lines, std::int64_t count) {
    if (lines == 1) return add_lines<1, kFirst>(out, values, stride, weights, count);
    if (lines == 2) return add_lines<2, kFirst>(out, values, stride, weights, count);
    if (lines == 3) return add_lines<3, kFirst>(out, values, stride, weights, count);
    add_lines<4, kFirst>(out, values, stride, weights, count);
}

// What a cell's lines, `stride` values apart, make together. first: the line that `values` begins with.
ALWAYS_INLINE void weighted(float* out, const float* values, std::int64_t stride, const Cell& cell,
                            std::int64_t count, std::int64_t first) {
    const std::int64_t lines = cell.end - cell.first;
    const float* weights = cell.weights.data();
    if (lines == 0) return std::fill(out, out + count, 0.0f);
    values += (cell.first - first) * stride;
    add_some<true>(out, values, stride, weights, std::min<std::int64_t>(lines, 4), count);
    for (std::int64_t done = 4; done < lines; done += 4)
        add_some<false>(out, values + done * stride, stride, weights + done, std::min<std::int64_t>(lines - done, 4),
                        count);
}

ALWAYS_INLINE void mean_of_cells(const FeatureMap& map, const std::vector<Cell>& rows, const std::vector<Cell>& columns,
                                 float* out) {
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
        weighted(line.data(), map.values + left * channels, map.width * channels, row,
                 static_cast<std::int64_t>(line.size()), 0);
        for (const Cell& column : columns) {
            weighted(out, line.data(), channels, column, channels, left);
            out += channels;
        }
    }
}

#ifdef CONFORMER_FAST_X86
bool has_avx2() { return __builtin_cpu_supports("avx2"); }

AVX2 void keep_best_avx2(Group& group, float threshold) { keep_best_of(group, threshold); }

AVX2 void mean_avx2(const FeatureMap& map, const std::vector<Cell>& rows, const std::vector<Cell>& columns,
                    float* out) {
    mean_of_cells(map, rows, columns, out);
}
#endif

}  // namespace

void keep_best(const Box* boxes, const std::int64_t* groups, std::size_t count, float threshold, bool* kept) {
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return groups[i] < groups[j]; });
    for (std::size_t first = 0, end; first < count; first = end) {
        end = first + 1;
        while (end < count && groups[order[end]] == groups[order[first]]) ++end;
        Group group(end - first);
        for (std::size_t i = first; i < end; ++i) group.put(i - first, boxes[order[i]]);
#ifdef CONFORMER_FAST_X86
        has_avx2() ? keep_best_avx2(group, threshold) : keep_best_of(group, threshold);
#else
        keep_best_of(group, threshold);
#endif
        for (std::size_t i = first; i < end; ++i) kept[order[i]] = group.kept[i - first] != 0;
    }
}

void align(const FeatureMap& map, const Box& region, std::int32_t side, float* out) {
    const std::vector<Cell> rows = cells_of(region.y1, region.y2, side, map.height);
    const std::vector<Cell> columns = cells_of(region.x1, region.x2, side, map.width);
#ifdef CONFORMER_FAST_X86
    if (has_avx2()) return mean_avx2(map, rows, columns, out);
#endif
    mean_of_cells(map, rows, columns, out);
}

}  // namespace conformer_fast
