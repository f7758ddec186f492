#include "resample.h"

#include <algorithm>
#include <vector>

#include "pack.h"

namespace conformer_fast {
namespace {

// The rows of a picture. A pass may read kOverread bytes behind each: where the memory ends sooner, the last rows are
// copied to where there is room.
class Rows {
public:
    explicit Rows(const Picture& picture)
        : picture_(picture),
          row_bytes_(std::ptrdiff_t{picture.width} * picture.pixel_size),
          first_copied_(picture.height) {
        if (picture.roomy) return;
        first_copied_ = std::max<std::ptrdiff_t>(0, picture.height - 1 - kOverread / row_bytes_);
        const std::uint8_t* pixels = picture.strips.front();
        tail_.assign(pixels + first_copied_ * row_bytes_, pixels + picture.height * row_bytes_);
        tail_.resize(tail_.size() + kOverread);
    }

    const std::uint8_t* operator[](std::ptrdiff_t y) const {
        if (y >= first_copied_) return tail_.data() + (y - first_copied_) * row_bytes_;
        return picture_.strips[y / picture_.strip_rows] + y % picture_.strip_rows * row_bytes_;
    }

private:
    const Picture& picture_;
    std::ptrdiff_t row_bytes_;
    std::ptrdiff_t first_copied_;
    std::vector<std::uint8_t> tail_;
};

std::ptrdiff_t padded(std::ptrdiff_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The horizontal pass runs just ahead of the vertical one, in a ring of rows that stays in the cache. It computes the
// rows that the window's taps read, and of those the window's columns.
void horizontal_first(const Picture& picture, const Axis& columns, const Axis& lines, const Layout& layout,
                      const Passes& passes, std::byte* out) {
    const std::ptrdiff_t stride = padded(3 * std::ptrdiff_t{layout.size} + 1);
    const std::int32_t held = lines.most() + kRows;  // rows of the ring
    std::vector<std::uint8_t> ring(held * stride), line(stride);
    const auto ring_row = [&](std::int32_t y) { return ring.data() + y % held * stride; };

    const Rows rows(picture);
    std::vector<const std::uint8_t*> taken(lines.most());
    std::int32_t ready = lines.taps.front().start;
    const std::int32_t end = std::min(lines.end(), picture.height);
    for (std::int32_t y = 0; y < layout.size; ++y) {
        const Taps& taps = lines.taps[y];
        const std::int32_t count = kGroup * taps.groups;
        for (; ready < std::min(taps.start + count, end); ready += kRows) {
            const std::uint8_t* sources[kRows];
            std::uint8_t* results[kRows];
            for (int i = 0; i < kRows; ++i) {
                const std::int32_t row = std::min(ready + i, end - 1);
                sources[i] = rows[row];
                results[i] = ring_row(row);
            }
            passes.horizontal(sources, picture.pixel_size, columns, results);
        }
        for (std::int32_t t = 0; t < count; ++t) taken[t] = ring_row(taps.start + t);
        passes.vertical(taken.data(), taps.groups, lines.words.data() + taps.first_word, line.data(), stride);
        pack(line.data(), y, layout, out);
    }
}

// The vertical pass makes four rows of the window's height, of the columns that the window's taps read; the horizontal
// pass turns them into four rows of the window.
void vertical_first(const Picture& picture, const Axis& columns, const Axis& lines, const Layout& layout,
                    const Passes& passes, std::byte* out) {
    const std::ptrdiff_t first = std::ptrdiff_t{columns.taps.front().start} * picture.pixel_size;
    const std::ptrdiff_t end = std::ptrdiff_t{std::min(columns.end(), picture.width)} * picture.pixel_size;
    const std::ptrdiff_t stride = first + padded(end - first) + kOverread;
    const std::ptrdiff_t line_stride = 3 * std::ptrdiff_t{layout.size} + 1;
    std::vector<std::uint8_t> middle(kRows * stride), window(kRows * line_stride);
    const std::uint8_t* sources[kRows];
    std::uint8_t* results[kRows];
    for (int i = 0; i < kRows; ++i) {
        sources[i] = middle.data() + i * stride;
        results[i] = window.data() + i * line_stride;
    }

    const Rows rows(picture);
    std::vector<const std::uint8_t*> taken(lines.most());
    for (std::int32_t y = 0; y < layout.size; y += kRows) {
        const int count = std::min(kRows, layout.size - y);
        for (int i = 0; i < count; ++i) {
            const Taps& taps = lines.taps[y + i];
            for (std::int32_t t = 0; t < kGroup * taps.groups; ++t)
                taken[t] = rows[std::min(taps.start + t, picture.height - 1)] + first;
            passes.vertical(taken.data(), taps.groups, lines.words.data() + taps.first_word,
                            middle.data() + i * stride + first, padded(end - first));
        }
        passes.horizontal(sources, picture.pixel_size, columns, results);
        for (int i = 0; i < count; ++i) pack(results[i], y + i, layout, out);
    }
}

}  // namespace

void resample(const Picture& picture, const Layout& layout, const Passes& passes, std::byte* out) {
    const Axis columns =
        coefficients(picture.width, picture.new_width, picture.left, layout.size, passes.encode);
    const Axis lines = coefficients(picture.height, picture.new_height, picture.top, layout.size, passes.encode);
    (picture.vertical_first ? vertical_first : horizontal_first)(picture, columns, lines, layout, passes, out);
}

}  // namespace conformer_fast
