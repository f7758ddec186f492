// The tiles of winograd.h for one instruction set. A file that includes this has defined Vector, its TARGET, how many
// ROWS of two of them fit into its registers, and around the include `fused(x, y, z)`, x * y + z, and `all(x)`.

constexpr std::ptrdiff_t kWidth = sizeof(Vector) / sizeof(float);

// The points of the transforms are 0, 1, -1, 2, -2 and infinity.

// 6 values to 6.
TARGET inline void transform_input(const Vector* in, std::ptrdiff_t step, Vector* out, std::ptrdiff_t out_step) {
    const Vector d0 = in[0], d1 = in[step], d2 = in[2 * step], d3 = in[3 * step], d4 = in[4 * step], d5 = in[5 * step];
    const Vector even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, even2 = d4 - d2, odd2 = 2.0f * (d3 - d1);
    out[0] = 4.0f * d0 - 5.0f * d2 + d4;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = even2 + odd2;
    out[4 * out_step] = even2 - odd2;
    out[5 * out_step] = 4.0f * d1 - 5.0f * d3 + d5;
}

// 6 values to 4.
TARGET inline void transform_output(const Vector* in, std::ptrdiff_t step, Vector* out, std::ptrdiff_t out_step) {
    const Vector even = in[step] + in[2 * step], odd = in[step] - in[2 * step];
    const Vector even2 = in[3 * step] + in[4 * step], odd2 = in[3 * step] - in[4 * step];
    out[0] = in[0] + even + even2;
    out[out_step] = odd + 2.0f * odd2;
    out[2 * out_step] = even + 4.0f * even2;
    out[3 * out_step] = odd + 8.0f * odd2 + in[5 * step];
}

// What stands in memory may be of any alignment.
TARGET inline Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

TARGET inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// The products of kRows tiles with one panel of weights.
template <int kRows>
TARGET inline void multiply(const float* tiles, std::ptrdiff_t channels, const float* panel, float* out,
                            std::ptrdiff_t outputs) {
    for (std::ptrdiff_t at = 0; at < kPanel; at += 2 * kWidth) {
        Vector sums[kRows][2] = {};
        const float* weights = panel + at;
        for (std::ptrdiff_t channel = 0; channel < channels; ++channel, weights += kPanel) {
            const Vector left = load(weights), right = load(weights + kWidth);
            for (int row = 0; row < kRows; ++row) {
                const Vector value = all(tiles[row * channels + channel]);
                sums[row][0] = fused(value, left, sums[row][0]);
                sums[row][1] = fused(value, right, sums[row][1]);
            }
        }
        for (int row = 0; row < kRows; ++row) {
            store(out + row * outputs + at, sums[row][0]);
            store(out + row * outputs + at + kWidth, sums[row][1]);
        }
    }
}

struct Place {
    const Winograd& conv;
    std::ptrdiff_t image, top, left;

    Place(const Winograd& of, std::ptrdiff_t tile)
        : conv(of),
          image(tile / (of.rows() * of.columns())),
          top(tile / of.columns() % of.rows() * kTileSide),
          left(tile % of.columns() * kTileSide) {}

    std::ptrdiff_t pixel(std::ptrdiff_t y, std::ptrdiff_t x) const {
        return (image * conv.height + top + y) * conv.width + left + x;
    }
};

TARGET inline void read_tile(const Place& place, float* out, std::ptrdiff_t point_step) {
    const Winograd& conv = place.conv;
    for (std::ptrdiff_t channel = 0; channel < conv.channels; channel += kWidth) {
        Vector columns[6][6], points[kPoints];
        for (int x = 0; x < 6; ++x) {
            const bool beside = place.left + x < 1 || place.left + x > conv.width;
            Vector pixels[6];
            for (int y = 0; y < 6; ++y) {
                const bool outside = beside || place.top + y < 1 || place.top + y > conv.height;
                pixels[y] = outside ? Vector{} : load(conv.maps + place.pixel(y - 1, x - 1) * conv.channels + channel);
            }
            transform_input(pixels, 1, &columns[0][x], 6);
        }
        for (int y = 0; y < 6; ++y) transform_input(columns[y], 1, points + 6 * y, 1);
        for (int point = 0; point < kPoints; ++point) store(out + point * point_step + channel, points[point]);
    }
}

TARGET inline void write_tile(const Place& place, const float* in, std::ptrdiff_t point_step) {
    const Winograd& conv = place.conv;
    const std::ptrdiff_t height = std::min(kTileSide, conv.height - place.top);
    const std::ptrdiff_t width = std::min(kTileSide, conv.width - place.left);
    for (std::ptrdiff_t channel = 0; channel < conv.outputs; channel += kWidth) {
        Vector columns[kTileSide][6], results[kTileSide][kTileSide];
        for (int x = 0; x < 6; ++x) {
            Vector points[6];
            for (int y = 0; y < 6; ++y) points[y] = load(in + (6 * y + x) * point_step + channel);
            transform_output(points, 1, &columns[0][x], 6);
        }
        for (int y = 0; y < kTileSide; ++y) transform_output(columns[y], 1, results[y], 1);
        const Vector bias = load(conv.bias + channel);
        for (std::ptrdiff_t y = 0; y < height; ++y)
            for (std::ptrdiff_t x = 0; x < width; ++x) {
                Vector value = results[y][x] + bias;
                if (conv.relu) value = value < Vector{} ? Vector{} : value;  // a NaN stays one
                store(conv.out + place.pixel(y, x) * conv.outputs + channel, value);
            }
    }
}

TARGET void make_tiles(const Winograd& conv, std::ptrdiff_t first, std::ptrdiff_t count, float* memory) {
    const std::ptrdiff_t read_step = count * conv.channels, made_step = count * conv.outputs;
    float* const made = memory + kPoints * read_step;
    for (std::ptrdiff_t i = 0; i < count; ++i)
        read_tile(Place(conv, first + i), memory + i * conv.channels, read_step);
    const float* panel = conv.weights;
    for (std::ptrdiff_t point = 0; point < kPoints; ++point)
        for (std::ptrdiff_t output = 0; output < conv.outputs; output += kPanel, panel += conv.channels * kPanel) {
            const float* tiles = memory + point * read_step;
            float* out = made + point * made_step + output;
            std::ptrdiff_t i = 0;
            for (; i + ROWS <= count; i += ROWS)
                multiply<ROWS>(tiles + i * conv.channels, conv.channels, panel, out + i * conv.outputs, conv.outputs);
            for (; i + 3 <= count; i += 3)
                multiply<3>(tiles + i * conv.channels, conv.channels, panel, out + i * conv.outputs, conv.outputs);
            for (; i < count; ++i)
                multiply<1>(tiles + i * conv.channels, conv.channels, panel, out + i * conv.outputs, conv.outputs);
        }
    for (std::ptrdiff_t i = 0; i < count; ++i) write_tile(Place(conv, first + i), made + i * conv.outputs, made_step);
}
