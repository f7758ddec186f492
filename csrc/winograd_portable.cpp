// Plain C++, and the weights for all.
#include <algorithm>
#include <cstring>

#include "winograd.h"

namespace conformer_fast {
namespace {

#define TARGET
#define ROWS 4

using Vector = float;

inline Vector fused(Vector x, Vector y, Vector z) { return x * y + z; }

inline Vector all(float x) { return x; }

#include "winograd_tiles.h"

// 3 values to 6, in double: so that what is left is one rounding.
void transform_weights(const double* in, std::ptrdiff_t step, double* out, std::ptrdiff_t out_step) {
    const double w0 = in[0], w1 = in[step], w2 = in[2 * step];
    out[0] = w0 / 4;
    out[out_step] = -(w0 + w1 + w2) / 6;
    out[2 * out_step] = -(w0 - w1 + w2) / 6;
    out[3 * out_step] = (w0 + 2 * w1 + 4 * w2) / 24;
    out[4 * out_step] = (w0 - 2 * w1 + 4 * w2) / 24;
    out[5 * out_step] = w2;
}

}  // namespace

const WinogradKernel kWinogradPortable = {"portable", [] { return true; }, make_tiles};

void winograd_weights(const float* weights, std::ptrdiff_t outputs, std::ptrdiff_t channels, float* out) {
    const std::ptrdiff_t point_step = outputs * channels;
    for (std::ptrdiff_t output = 0; output < outputs; ++output)
        for (std::ptrdiff_t channel = 0; channel < channels; ++channel, weights += 9) {
            double window[9], columns[18], points[kPoints];
            std::copy(weights, weights + 9, window);
            for (int x = 0; x < 3; ++x) transform_weights(window + x, 3, columns + x, 3);
            for (int y = 0; y < 6; ++y) transform_weights(columns + 3 * y, 1, points + 6 * y, 1);
            float* to = out + (output / kPanel * channels + channel) * kPanel + output % kPanel;
            for (int point = 0; point < kPoints; ++point) to[point * point_step] = static_cast<float>(points[point]);
        }
}

}  // namespace conformer_fast
