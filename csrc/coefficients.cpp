// Pillow's arithmetic, step by step (its src/libImaging/Resample.c, the same in every release since 10.3): Keys' cubic
// convolution with a = -0.5, stretched when a line shrinks, in double; the weights of a pixel are divided by their sum
// and rounded, a half away from zero, to multiples of 2^-22. Each operation is written in Pillow's order, so that every
// rounding is the same; the build must not contract products and sums.
#include "coefficients.h"

#include <algorithm>
#include <cmath>

namespace conformer_fast {
namespace {

double keys_cubic(double x) {
    x = std::fabs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

std::int32_t fixed_point(double weight) {
    const double scaled = weight * (1 << kPrecisionBits);
    return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

}  // namespace

std::int32_t Axis::end() const { return taps.back().start + kGroup * taps.back().groups; }

std::int32_t Axis::most() const {
    std::int32_t groups = 0;
    for (const Taps& one : taps) groups = std::max(groups, one.groups);
    return kGroup * groups;
}

Axis coefficients(std::int32_t length, std::int32_t new_length, std::int32_t first, std::int32_t count, Encode encode) {
    const double scale = static_cast<double>(static_cast<float>(length)) / new_length;  // Pillow's box is of floats
    const double stretch = std::max(scale, 1.0);
    const double support = 2.0 * stretch;
    const double inverse = 1.0 / stretch;
    Axis axis;
    axis.taps.reserve(count);
    std::vector<double> weights;
    for (std::int32_t i = first; i < first + count; ++i) {
        std::int32_t start = i, stop = i + 1;  // a line that keeps its length is copied
        weights.assign(1, 1.0);
        if (length != new_length) {
            const double center = (i + 0.5) * scale;
            start = static_cast<std::int32_t>(std::max(center - support + 0.5, 0.0));
            stop = static_cast<std::int32_t>(std::min(center + support + 0.5, static_cast<double>(length)));
            weights.resize(stop - start);
            double sum = 0.0;
            for (std::int32_t x = 0; x < stop - start; ++x) {
                weights[x] = keys_cubic((x + start - center + 0.5) * inverse);
                sum += weights[x];
            }
            for (double& weight : weights) weight = sum != 0.0 ? weight / sum : weight;
        }
        const std::int32_t groups = (stop - start + kGroup - 1) / kGroup;
        axis.taps.push_back({start, groups, static_cast<std::int64_t>(axis.words.size())});
        for (std::int32_t group = 0; group < groups; ++group) {
            std::int32_t rounded[kGroup] = {}, words[kGroup] = {};
            for (std::int32_t t = 0; t < std::min(kGroup, stop - start - kGroup * group); ++t)
                rounded[t] = fixed_point(weights[kGroup * group + t]);
            encode(rounded, words);
            axis.words.insert(axis.words.end(), words, words + kGroup);
        }
    }
    return axis;
}

}  // namespace conformer_fast
