// The steps of int8.h but the product, for one instruction set. A file that includes this has included int8_lanes.h
// before, and defined multiply_block(). Numbers are joined to words as little-endian processors have them.

// 2^x, for x from -126 to 127. The relative error is below 3e-6.
TARGET inline Floats exp2(Floats x) {
    const Floats part = fraction(x);
    Floats power = fused(all(0.01353417f), part, all(0.05201146f));
    power = fused(power, part, all(0.24144275f));
    power = fused(power, part, all(0.69300383f));
    power = fused(power, part, all(1.00000259f));
    return scaled(power, x);
}

// x times the normal distribution up to x, which is 0.5 + x * p(x^2) up to 4.5, and 0 or 1 beyond. The error is below
// 4e-6 * max(|x|, 1). p is a polynomial in `at`, which goes from -1 to 1.
TARGET inline Floats gelu(Floats x) {
    const Floats held = least(largest(x, all(-4.5f)), all(4.5f));
    const Floats at = fused(held * held, all(2 / 20.25f), all(-1.0f));
    Floats sum = fused(all(-0.00171946175f), at, all(0.00487326225f));
    sum = fused(sum, at, all(-0.00645533437f));
    sum = fused(sum, at, all(0.00978757348f));
    sum = fused(sum, at, all(-0.0182536133f));
    sum = fused(sum, at, all(0.0287969429f));
    sum = fused(sum, at, all(-0.0402869172f));
    sum = fused(sum, at, all(0.0546458252f));
    sum = fused(sum, at, all(-0.0771830454f));
    sum = fused(sum, at, all(0.156905875f));
    return x * fused(held, sum, all(0.5f));
}

template <typename T>
struct Parts {
    typedef T Eight __attribute__((vector_size(32)));
    typedef T Four __attribute__((vector_size(16)));
};

// The lanes in one fixed order, as sums of float32 depend on it.
template <typename T, typename Vector>
TARGET inline T sum_of(Vector x) {
    typename Parts<T>::Eight halves[2];
    std::memcpy(halves, &x, sizeof x);
    halves[0] += halves[1];
    typename Parts<T>::Four quarters[2];
    std::memcpy(quarters, halves, sizeof quarters);
    const auto four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

TARGET inline std::int32_t largest_of(Ints x) {
    Parts<std::int32_t>::Eight halves[2];
    std::memcpy(halves, &x, sizeof x);
    halves[0] = halves[0] > halves[1] ? halves[0] : halves[1];
    Parts<std::int32_t>::Four quarters[2];
    std::memcpy(quarters, halves, sizeof quarters);
    const auto four = quarters[0] > quarters[1] ? quarters[0] : quarters[1];
    return std::max(std::max(four[0], four[2]), std::max(four[1], four[3]));
}

// Four numbers of 8 bits in each lane, the first one lowest.
TARGET inline Ints joined(Ints first, Ints second, Ints third, Ints fourth) {
    return first | second << 8 | third << 16 | fourth << 24;
}

struct Moments {
    Floats mean, inverse;  // of the standard deviation, eps within
};

TARGET inline Moments moments_of(const float* row, Index channels, float eps) {
    Floats sum = {}, squares = {};
    for (Index at = 0; at < channels; at += kLanes) sum += load(row + at);
    const Floats mean = all(sum_of<float>(sum) / static_cast<float>(channels));
    for (Index at = 0; at < channels; at += kLanes) {
        const Floats apart = load(row + at) - mean;
        squares = fused(apart, apart, squares);
    }
    return {mean, all(1.0f / std::sqrt(sum_of<float>(squares) / static_cast<float>(channels) + eps))};
}

TARGET inline Floats normalized(Floats x, const Moments& moments, const float* weight, const float* bias) {
    return fused((x - moments.mean) * moments.inverse, load(weight), load(bias));
}

// Steps are copied where they are read between writes: what is written in bytes might be them.
TARGET inline void norm_row(const Norm step, Index row) {
    const Index start = row * step.channels;
    const float* const tokens = step.tokens + row * step.row_step;
    const Moments moments = moments_of(tokens, step.channels, step.eps);
    const Shift shift = shift_to(step.out_numbers);
    for (Index at = 0; at < step.channels; at += kLanes) {
        const Floats x = load(tokens + at);
        const Floats value = normalized(x, moments, step.weight + at, step.bias + at);
        if (step.out_floats) store(step.out_floats + start + at, value);
        if (step.out) store_held(step.out + start + at, shifted(value, shift));
    }
}

TARGET void norm(const Norm& step, Index first, Index last) {
    for (Index row = first; row < last; ++row) norm_row(step, row);
}

TARGET void couple(const Couple& step, Index first, Index last) {
    const Index channels = step.norm.channels;
    for (Index row = first; row < last; ++row) {
        const Index image = row / step.tokens_per_image, token = row % step.tokens_per_image;
        const float* const tokens = step.tokens + row * channels;
        float* const out = step.out + row * channels;
        if (token == 0) {
            for (Index at = 0; at < channels; at += kLanes) store(out + at, load(tokens + at) * 2.0f);
        } else {
            const float* const projected = step.projected + (row - image - 1) * channels;
            const Moments moments = moments_of(projected, channels, step.inner_eps);
            for (Index at = 0; at < channels; at += kLanes) {
                const Floats x = load(projected + at);
                const Floats inner = normalized(x, moments, step.inner_weight + at, step.inner_bias + at);
                store(out + at, load(tokens + at) + gelu(inner));
            }
        }
        norm_row(step.norm, row);
    }
}

// A head's keys as panels for multiply_block, a column a key. q * k is made of q - 128 by adding a key's offset to the
// product, which is very low beyond the last key, so that none of these is the largest.
TARGET void pack_keys(const std::uint8_t* keys, const Attention& step, std::uint8_t* panels, std::int32_t* offsets) {
    const Index row_step = 3 * step.heads * step.size;
    for (Index key = 0; key < step.tokens; ++key) {
        std::uint8_t* const column = panels + key / kTile * kTile * kDepth + key % kTile * 4;
        for (Index channel = 0; channel < step.size; channel += 4) {
            std::uint32_t four;
            std::memcpy(&four, keys + key * row_step + channel, sizeof four);
            four ^= 0x80808080u;
            std::memcpy(column + channel * kTile, &four, sizeof four);
        }
        Ints sum = {};
        for (Index channel = 0; channel < step.size; channel += kLanes)
            sum += load(keys + key * row_step + channel) - 128;
        offsets[key] = -128 * sum_of<std::int32_t>(sum);
    }
    for (Index key = step.tokens; key % kLanes; ++key) offsets[key] = INT32_MIN / 2;
    // Columns beyond the last key may hold anything; channels beyond the head's must not.
    for (Index start = 0; start < step.tokens && step.size < kDepth; start += kTile)
        std::memset(panels + start * kDepth + step.size * kTile, 0, (kDepth - step.size) * kTile);
}

// A head's values as panels for multiply_block, a column a channel. Keys beyond the last one meet weights of zero.
TARGET void pack_values(const std::uint8_t* values, const Attention& step, Index depth, std::uint8_t* panels) {
    const Index row_step = 3 * step.heads * step.size;
    for (Index channel = 0; channel < step.size; channel += kTile) {
        std::uint8_t* const panel = panels + channel / kBlock * kBlock * depth + channel % kBlock * kDepth;
        for (Index key = 0; key < step.tokens; key += 4) {
            const std::uint8_t* const from = values + key * row_step + channel;
            const Ints first = load(from), second = load(from + row_step);
            const Ints third = load(from + 2 * row_step), fourth = load(from + 3 * row_step);
            const Ints four = joined(first, second, third, fourth) ^ static_cast<std::int32_t>(0x80808080u);
            std::memcpy(panel + key / kDepth * kBlock * kDepth + key % kDepth * kTile, &four, sizeof four);
        }
    }
}

// Sixteen of a query's products with the keys.
TARGET inline Ints logits(const std::int32_t* products, const std::int32_t* offsets, Index key) {
    return load(products + key / kBlock * kBlock * kBlock + key % kBlock) + load(offsets + key);
}

TARGET inline std::int32_t largest_logit(const std::int32_t* products, const std::int32_t* offsets, Index tokens) {
    Ints most = all(INT32_MIN);
    for (Index key = 0; key < tokens; key += kLanes) {
        const Ints found = logits(products, offsets, key);
        most = found > most ? found : most;
    }
    return largest_of(most);
}

// 2^((logit - top) * exponent) as numbers of 16 bits, the largest 65535, upper and lower 8 bits apart. Returns their
// sum.
TARGET inline std::int32_t weights_of(const std::int32_t* products, const std::int32_t* offsets, Index tokens,
                                      std::int32_t top, float exponent, std::uint8_t* upper, std::uint8_t* lower) {
    constexpr float kLargest = 15.9999780f;  // 2^ this is 65535
    constexpr Ints kOrder = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints sum = {};
    for (Index key = 0; key < tokens; key += kLanes) {
        const Floats below = to_floats(logits(products, offsets, key) - top);
        const Floats power = fused(below, all(exponent), all(kLargest));
        Ints weight = rounded(exp2(largest(power, all(-64.0f))));
        if (tokens - key < kLanes) weight &= kOrder < static_cast<std::int32_t>(tokens - key);
        sum += weight;
        store(upper + key, weight >> 8);
        store(lower + key, weight);
    }
    return sum_of<std::int32_t>(sum);
}

TARGET void attend(const Attention& step, Index item, std::byte* scratch, Ahead& ahead) {
    static constexpr std::int32_t kTap[] = {0};
    const AttentionScratch at(step.tokens, step.size);
    auto* const keys = reinterpret_cast<std::uint8_t*>(scratch + at.keys);
    auto* const values = reinterpret_cast<std::uint8_t*>(scratch + at.values);
    auto* const offsets = reinterpret_cast<std::int32_t*>(scratch + at.offsets);
    auto* const products = reinterpret_cast<std::int32_t*>(scratch + at.products);
    auto* const upper = reinterpret_cast<std::uint8_t*>(scratch + at.weights);
    auto* const lower = upper + kBlock * at.depth;
    auto* const high = reinterpret_cast<std::int32_t*>(scratch + at.sums);
    auto* const low = high + kBlock * kBlock;

    const Index image = item / step.heads, head = item % step.heads;
    const Index channels = step.heads * step.size, row_step = 3 * channels;
    const std::uint8_t* const queries = step.qkv + image * step.tokens * row_step + head * step.size;
    pack_keys(queries + channels, step, keys, offsets);
    pack_values(queries + 2 * channels, step, at.depth, values);
    std::memset(upper, 0, 2 * kBlock * at.depth);
    const float exponent = step.scale * step.scale * 1.44269504f;
    const Shift shift = shift_to(step.out_numbers);

    for (Index first = 0; first < step.tokens; first += kBlock) {
        const Index rows = std::min(kBlock, step.tokens - first);
        const std::uint8_t* const query = queries + first * row_step;
        for (Index key = 0; key < step.tokens; key += kBlock)
            multiply_block({query, query + kTile * row_step, row_step, kTap, 1, step.size,
                            reinterpret_cast<std::int8_t*>(keys + key * kDepth), rows, false},
                           products + key * kBlock, ahead);
        std::int32_t tops[kBlock];
        for (Index row = 0; row < rows; ++row) tops[row] = largest_logit(products + row * kBlock, offsets, step.tokens);
        float scales[kBlock];
        for (Index row = 0; row < rows; ++row) {
            const std::int32_t sum = weights_of(products + row * kBlock, offsets, step.tokens, tops[row], exponent,
                                                upper + row * at.depth, lower + row * at.depth);
            scales[row] = step.scale / static_cast<float>(sum);
        }
        for (Index panel = 0; panel < step.size; panel += kBlock) {
            const auto* const weights = reinterpret_cast<std::int8_t*>(values + panel * at.depth);
            Block block{upper, upper + kTile * at.depth, at.depth, kTap, 1, step.tokens, weights, rows, false};
            multiply_block(block, high, ahead);
            block.first = lower, block.second = lower + kTile * at.depth;
            multiply_block(block, low, ahead);
            const Index out = (image * step.tokens + first) * channels + head * step.size + panel;
            for (Index row = 0; row < rows; ++row)
                for (Index column = 0; column < std::min(kBlock, step.size - panel); column += kLanes) {
                    const Index from = row * kBlock + column, to = out + row * channels + column;
                    const Floats sum = fused(to_floats(load(high + from)), all(256.0f), to_floats(load(low + from)));
                    const Floats value = sum * scales[row];
                    if (step.out_floats) store(step.out_floats + to, value);
                    if (step.out) store_held(step.out + to, shifted(value, shift));
                }
        }
    }
}

TARGET void attention(const Attention& step, Index first, Index last, std::byte* scratch, Ahead& ahead) {
    for (Index item = first; item < last; ++item) attend(step, item, scratch, ahead);
}

// 16 pixels of up to four channels.
TARGET inline Ints pixels_of(const float* in, Index channel_step, const Picture step) {
    Ints channels[4];
    const Shift shift = shift_to(step.numbers);
    for (Index channel = 0; channel < 4; ++channel) {
        const Floats values = channel < step.channels ? load(in + channel * channel_step) : Floats{};
        channels[channel] = rounded(least(largest(shifted(values, shift), all(0.0f)), all(255.0f)));
    }
    return joined(channels[0], channels[1], channels[2], channels[3]);
}

TARGET void picture(const Picture& step, Index first, Index last) {
    constexpr Index kPad = 3;
    for (Index row = first; row < last; ++row) {
        const Index image = row / (step.height + 2 * kPad), y = row % (step.height + 2 * kPad) - kPad;
        std::uint8_t* const out = step.out + row * step.padded_width * 4;
        std::memset(out, step.numbers.zero, step.padded_width * 4);
        if (y < 0 || y >= step.height) continue;
        const float* const in = step.images + (image * step.channels * step.height + y) * step.width;
        const Index channel_step = step.height * step.width, rest = step.width % kLanes, whole = step.width - rest;
        for (Index x = 0; x < whole; x += kLanes) {
            const Ints pixels = pixels_of(in + x, channel_step, step);
            std::memcpy(out + (kPad + x) * 4, &pixels, sizeof pixels);
        }
        // Neither may images be read nor rows be written beyond their ends.
        float last_values[4 * kLanes] = {};
        for (Index channel = 0; channel < step.channels; ++channel)
            std::memcpy(last_values + channel * kLanes, in + channel * channel_step + whole, rest * sizeof *in);
        const Ints last_pixels = pixels_of(last_values, kLanes, step);
        std::memcpy(out + (kPad + whole) * 4, &last_pixels, rest * 4);
    }
}

using Bytes = std::uint8_t __attribute__((vector_size(kLanes)));

// Of up to three numbers, one below another, of a channel.
TARGET inline Bytes column_maximum(const std::uint8_t* top, Index rows, Index row_step) {
    Bytes most = {};
    for (Index row = 0; row < rows; ++row) {
        Bytes value;
        std::memcpy(&value, top + row * row_step, sizeof value);
        most = value > most ? value : most;
    }
    return most;
}

TARGET void max_pool(const MaxPool& step, Index first, Index last) {
    const Index width = (step.width + 1) / 2, row_step = step.width * step.channels;
    for (Index row = first; row < last; ++row) {
        const Index image = row / step.out_height, y = row % step.out_height;
        std::uint8_t* const out = step.out + row * step.out_width * step.channels;
        const Index top = std::max<Index>(2 * y - 1, 0), rows = std::min(2 * y + 2, step.height) - top;
        const Index columns = 2 * y < step.height ? width : 0;
        std::memset(out + columns * step.channels, 0, (step.out_width - columns) * step.channels);
        const std::uint8_t* const in = step.in + (image * step.height + top) * row_step;
        for (Index channel = 0; channel < step.channels; channel += kLanes) {
            Bytes left = {};
            for (Index x = 0; x < columns; ++x) {
                const std::uint8_t* const at = in + 2 * x * step.channels + channel;
                const Bytes middle = column_maximum(at, rows, row_step);
                Bytes right = {};
                if (2 * x + 1 < step.width) right = column_maximum(at + step.channels, rows, row_step);
                Bytes most = left > middle ? left : middle;
                most = most > right ? most : right;
                std::memcpy(out + x * step.channels + channel, &most, sizeof most);
                left = right;
            }
        }
    }
}

// The mean of `count` numbers whose sum is given.
TARGET inline Floats mean_of(Ints sum, Index count, const Numbers& numbers) {
    const auto zeros = static_cast<std::int32_t>(numbers.zero * count);
    return to_floats(sum - zeros) * (numbers.scale / static_cast<float>(count));
}

TARGET void average(const Average& step, Index first, Index last) {
    const Index height = step.height / step.stride, width = step.width / step.stride;
    const Shift shift = shift_to(step.out_numbers);
    for (Index row = first; row < last; ++row) {
        const Index top = row / height * step.height + row % height * step.stride;
        for (Index x = 0; x < width; ++x)
            for (Index channel = 0; channel < step.channels; channel += kLanes) {
                const std::uint8_t* const in = step.in + (top * step.width + x * step.stride) * step.channels + channel;
                Ints sum = {};
                for (Index below = 0; below < step.stride; ++below)
                    for (Index beside = 0; beside < step.stride; ++beside)
                        sum += load(in + (below * step.width + beside) * step.channels);
                const Floats value = mean_of(sum, step.stride * step.stride, step.in_numbers);
                store_held(step.out + (row * width + x) * step.channels + channel, shifted(value, shift));
            }
    }
}

TARGET void mean(const Mean& step, Index first, Index last) {
    for (Index image = first; image < last; ++image)
        for (Index channel = 0; channel < step.channels; channel += kLanes) {
            const float* const in = step.in + image * step.pixels * step.channels + channel;
            Floats sum = {};
            for (Index pixel = 0; pixel < step.pixels; ++pixel) sum += load(in + pixel * step.channels);
            store(step.out + image * step.channels + channel, sum / static_cast<float>(step.pixels));
        }
}

TARGET void quantize(const Quantize& step, Index first, Index last) {
    const Shift shift = shift_to(step.numbers);
    for (Index at = first * kLanes; at < last * kLanes; at += kLanes)
        store_held(step.out + at, shifted(load(step.in + at), shift));
}
