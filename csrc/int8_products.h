// Products for one instruction set. A file that includes this has included int8_lanes.h, and defined what int8_rows.h
// multiplies by too: multiply_block(block, out, ahead), which fetches what lies ahead meanwhile.

// A block of float32: the first kTile rows begin at `first`, the others at `second`, and `depth` is in values.
TARGET inline void multiply_float_block(const float* first, const float* second, Index row_step,
                                        const std::int32_t* tap, Index taps, Index depth, const float* panel,
                                        Index rows, float* out) {
    constexpr int kRows = 4;
    for (Index row = 0; row < rows; row += kRows) {
        const float* from = (row < kTile ? first : second) + row % kTile * row_step;
        const float* weights = panel;
        Floats sums[kRows][2] = {};
        for (Index t = 0; t < taps; ++t)
            for (Index i = 0; i < depth; ++i, weights += kBlock) {
                const Floats left = load(weights), right = load(weights + kLanes);
                for (int r = 0; r < kRows; ++r) {
                    const Floats value = all(from[r * row_step + tap[t] + i]);
                    sums[r][0] = fused(value, left, sums[r][0]);
                    sums[r][1] = fused(value, right, sums[r][1]);
                }
            }
        for (int r = 0; r < kRows; ++r) {
            store(out + (row + r) * kBlock, sums[r][0]);
            store(out + (row + r) * kBlock + kLanes, sums[r][1]);
        }
    }
}

enum class Act { kNone, kRelu, kGelu };
enum class Added { kNothing, kNumbers, kFloats, kMap };

// What becomes of a block's sums. Where they become numbers without GELU, the numbers' scale and zero are in those of
// the columns.
template <bool kInFloats, Act kAct, Added kAdded, bool kOutFloats>
TARGET void finish(const Product product, const void* sums, Index first_row, Index rows, Index first_column) {
    constexpr bool kScaled = !kOutFloats && kAct != Act::kGelu;
    const float inverse = kScaled ? product.out_numbers.inverse : 1.0f;
    const auto zero = kScaled ? static_cast<float>(product.out_numbers.zero) : 0.0f;
    const float residual_scale = product.residual_numbers.scale * inverse;
    const float residual_zero = residual_scale * static_cast<float>(product.residual_numbers.zero);
    const Shift shift = shift_to(product.out_numbers);
    const Index columns = std::min(kBlock, product.columns - first_column);
    for (Index column = 0; column < columns; column += kLanes) {
        const Index at = first_column + column, count = std::min(kLanes, columns - column);
        const Floats scale = load(product.scales + at) * inverse;
        Floats bias = fused(load(product.bias + at), all(inverse), all(zero));
        if constexpr (kAdded == Added::kNumbers) bias -= residual_zero;
        for (Index row = 0; row < rows; ++row) {
            const Index to = product.out_rows ? product.out_rows[first_row + row] : first_row + row;
            if (to < 0) continue;
            const Index place = row * kBlock + column, result = to * product.columns + at;
            Floats value;
            if constexpr (kInFloats)
                value = load(static_cast<const float*>(sums) + place);
            else
                value = to_floats(load(static_cast<const std::int32_t*>(sums) + place));
            value = fused(value, scale, bias);
            if constexpr (kAdded == Added::kNumbers)
                value = fused(to_floats(load(product.residual + result)), all(residual_scale), value);
            if constexpr (kAct == Act::kRelu) value = largest(value, all(zero));
            if constexpr (kAct == Act::kGelu) value = gelu(value);
            if constexpr (kAdded == Added::kFloats)
                value = fused(load(product.residual_floats + result), all(inverse), value);
            if constexpr (kAdded == Added::kMap) {
                const Index from = Index{product.addend_rows[to]} * product.columns + at;
                value = fused(load(product.addend + from), all(inverse), value);
            }
            if constexpr (kOutFloats) {
                float* const out = static_cast<float*>(product.out) + result;
                if (count == kLanes)
                    store(out, value);
                else
                    std::memcpy(out, &value, static_cast<std::size_t>(count) * sizeof(float));
            } else {
                std::uint8_t* const out = static_cast<std::uint8_t*>(product.out) + result;
                if constexpr (!kScaled) value = shifted(value, shift);
                store_held(out, value);
            }
        }
    }
}

using Finish = void (*)(Product, const void*, Index, Index, Index);

template <bool kInFloats, Act kAct, Added kAdded>
Finish finish_of(bool out_floats) {
    return out_floats ? &finish<kInFloats, kAct, kAdded, true> : &finish<kInFloats, kAct, kAdded, false>;
}

template <bool kInFloats, Act kAct>
Finish finish_of(const Product& product) {
    if (product.residual) return finish_of<kInFloats, kAct, Added::kNumbers>(product.out_floats);
    if (product.residual_floats) return finish_of<kInFloats, kAct, Added::kFloats>(product.out_floats);
    if (product.addend) return finish_of<kInFloats, kAct, Added::kMap>(product.out_floats);
    return finish_of<kInFloats, kAct, Added::kNothing>(product.out_floats);
}

template <bool kInFloats>
Finish finish_of(const Product& product) {
    if (product.gelu) return finish_of<kInFloats, Act::kGelu>(product);
    return product.relu ? finish_of<kInFloats, Act::kRelu>(product) : finish_of<kInFloats, Act::kNone>(product);
}

// A block whose sums are made, and what becomes of them is not yet.
struct Made {
    const std::int32_t* sums = nullptr;
    Index row = 0, rows = 0, column = 0;
};

// The blocks of some rows and some columns, kTogether columns of blocks at a time. Of long sums a part is made for all
// of these before the next, so that the rows' numbers of that part stay in the nearest cache. A block is finished
// behind the products of the next one, so that both are computed at the same time.
TARGET void multiply_rectangle(const Product& product, Finish finish, Index first_row, Index last_row,
                               Index first_column, Index last_column, Ahead& ahead) {
    constexpr Index kTogether = 8, kLongest = 12, kPart = 8;  // the last two in kDepth numbers
    const Index depths = (product.depth + kDepth - 1) / kDepth;
    const Index panel = panel_bytes(product) / (product.in_floats ? Index{sizeof(float)} : 1);  // in values
    const Index part = !product.in_floats && product.taps == 1 && depths > kLongest ? kPart : depths;
    alignas(64) std::int32_t sums[2][kTogether][kBlock * kBlock];
    Made made;
    Index turn = 0;
    for (Index start = first_column; start < last_column; start += kTogether)
        for (Index block = first_row; block < last_row; ++block, turn ^= 1) {
            const Index row = block * kBlock, rows = std::min(kBlock, product.rows - row), tile = row / kTile;
            const Index columns = std::min(kTogether, last_column - start);
            const Index at = product.tiles ? product.tiles[tile] : row * product.row_step;
            const Index behind = product.tiles ? product.tiles[tile + 1] : at + kTile * product.row_step;
            const Index other = rows > kTile ? behind : at;
            for (Index depth = 0; depth < depths; depth += part)
                for (Index i = 0; i < columns; ++i) {
                    std::int32_t* const out = sums[turn][i];
                    if (product.in_floats) {
                        const float* in = static_cast<const float*>(product.in);
                        const float* weights = static_cast<const float*>(product.weights) + (start + i) * panel;
                        multiply_float_block(in + at, in + other, product.row_step, product.tap, product.taps,
                                             product.depth, weights, rows, reinterpret_cast<float*>(out));
                    } else {
                        const std::uint8_t* in = static_cast<const std::uint8_t*>(product.in) + depth * kDepth;
                        const std::int8_t* weights = static_cast<const std::int8_t*>(product.weights);
                        const Index numbers = std::min(part * kDepth, product.depth - depth * kDepth);
                        multiply_block({in + at, in + other, product.row_step, product.tap, product.taps, numbers,
                                        weights + (start + i) * panel + depth * kDepth * kBlock, rows, depth > 0},
                                       out, ahead);
                    }
                    if (depth + part < depths) continue;
                    if (made.sums) finish(product, made.sums, made.row, made.rows, made.column);
                    made = {out, row, rows, (start + i) * kBlock};
                }
        }
    if (made.sums) finish(product, made.sums, made.row, made.rows, made.column);
}

TARGET void multiply(const Product& product, Index first, Index last, Ahead& ahead) {
    const Index down = (product.rows + kBlock - 1) / kBlock, across = (product.columns + kBlock - 1) / kBlock;
    const Finish finish = product.in_floats ? finish_of<true>(product) : finish_of<false>(product);
    const bool by_column = shared_by_columns(product);
    const Index length = by_column ? down : across;
    while (first < last) {
        const Index line = first / length, begin = first % length;
        const Index lines = begin ? 1 : std::max(Index{1}, (last - first) / length);
        const Index end = std::min(length, begin + last - first);
        if (by_column)
            multiply_rectangle(product, finish, begin, end, line, line + lines, ahead);
        else
            multiply_rectangle(product, finish, line, line + lines, begin, end, ahead);
        first += lines * (end - begin);
    }
}
