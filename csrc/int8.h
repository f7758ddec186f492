// A Conformer with its products in 8 bits, on the CPU: what a step computes, and who computes it.
//
// Maps are (images, height, width, channels), tokens (images, tokens, channels), one row of channels after another.
// Numbers are unsigned, 8 bits: a number stands for scale * (number - zero). Sums of products are exact, in 32 bits;
// all else is in float32. Rows and columns that nothing reads may hold anything, but memory behind a buffer must be
// readable: kSpare bytes, and kBlock rows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace conformer_fast {

using Index = std::ptrdiff_t;

constexpr Index kBlock = 32;    // rows and columns of results that are made together
constexpr Index kTile = 16;     // rows whose inputs are evenly apart
constexpr Index kDepth = 64;    // numbers of a sum that are multiplied together; weights are padded with zeros to it
constexpr Index kLanes = 16;    // channels of all vectors are a multiple of it
constexpr Index kSpare = 4096;  // bytes

// How values become numbers: number = round(value * inverse + zero), half to even, held within 0 and 255.
struct Numbers {
    float scale, inverse;
    std::int32_t zero;
};

// rows x depth by depth x columns. Weights and activations of 8 bits, or both of float32.
//
// A row's sum goes over `taps`, each of which is `depth` values, `tap[i]` values behind the row's first one. Rows come
// in tiles of kTile; those of a tile are `row_step` values apart.
struct Product {
    const void* in;
    bool in_floats;  // of values: else numbers
    Index row_step;
    const std::int32_t* tiles;  // the first value of each tile; null: kTile rows behind the one before
    Index taps, depth;
    const std::int32_t* tap;
    // For each kBlock columns, each tap and each kDepth numbers: two halves of kTile columns, for each four numbers of
    // the sum, for each column: four numbers. Of float32: for each kBlock columns, each tap and each value: kBlock
    // values.
    const void* weights;
    const float *scales, *bias;  // (columns)
    Index rows, columns;         // the arrays of columns go on to a multiple of kBlock

    // act(sum * scale + bias + residual) + addend: where each row goes, and what is added
    const std::int32_t* out_rows;  // null: rows are in order; negative: the row is left out
    bool relu, gelu;
    const std::uint8_t* residual;  // numbers, in the order of the results; or null
    Numbers residual_numbers;
    const float* residual_floats;  // added behind the activation, in the order of the results; or null
    const float* addend;           // added behind the activation; or null
    const std::int32_t* addend_rows;  // the row of it, by the row of the result
    void* out;                        // numbers or float32, `columns` a row
    bool out_floats;
    Numbers out_numbers;
};

// Threads share the columns of few rows, whose weights are then read by one of them alone, and else the rows.
inline bool shared_by_columns(const Product& product) { return product.columns * product.taps > product.rows; }

// The bytes of a product's weights for kBlock columns.
inline Index panel_bytes(const Product& product) {
    if (product.in_floats) return product.taps * product.depth * kBlock * Index{sizeof(float)};
    return product.taps * ((product.depth + kDepth - 1) / kDepth) * kDepth * kBlock;
}

// numbers of norm(tokens) * weight + bias
struct Norm {
    const float* tokens;
    Index rows, channels, row_step;  // row_step: from a row of tokens to the next; the results are one after another
    const float *weight, *bias;
    float eps;
    std::uint8_t* out;  // numbers; or null
    float* out_floats;  // values; or null
    Numbers out_numbers;
};

// FCU-down behind its product: tokens[0] doubled, tokens[1 + i] + gelu(norm(projected[i])), and the norm of these.
struct Couple {
    const float* projected;  // (images, tokens - 1, channels)
    const float *inner_weight, *inner_bias;
    float inner_eps;
    const float* tokens;  // (images, tokens, channels)
    float* out;           // the same; not `tokens`
    Index tokens_per_image;
    Norm norm;  // of `out`; its rows are all images'
};

// softmax(q k^T) v of each head. qkv: (images, tokens, 3 heads size), all at one scale, zero 128. Weights have 16 bits,
// and their sums 32, so that there are less than 2^15 tokens.
struct Attention {
    const std::uint8_t* qkv;
    Index images, tokens, heads, size;  // size: channels of a head, at most kDepth, a multiple of kLanes
    float scale;
    std::uint8_t* out;   // (images, tokens, heads size) numbers; or null
    float* out_floats;   // or values
    Numbers out_numbers;
};

// float32 images (images, channels, height, width) as numbers (images, height + 6, width + 6 rounded up, 4): three
// pixels of zero around, channels up to the fourth of zero.
struct Picture {
    const float* images;
    Index count, channels, height, width, padded_width;
    std::uint8_t* out;
    Numbers numbers;
};

// 3x3 maximum of stride 2 with padding 1 of numbers that are never below their zero, which is 0. Rows and columns
// beyond the pooled map, up to out_height x out_width, become 0.
struct MaxPool {
    const std::uint8_t* in;  // (images, height, width, channels)
    Index images, height, width, channels, out_height, out_width;
    std::uint8_t* out;
};

// The mean over stride x stride pixels.
struct Average {
    const std::uint8_t* in;  // (images, height, width, channels)
    Numbers in_numbers;
    Index images, height, width, channels, stride;
    std::uint8_t* out;  // (images, height / stride, width / stride, channels)
    Numbers out_numbers;
};

// The mean over all pixels of maps: (images, pixels, channels) -> (images, channels), float32.
struct Mean {
    const float* in;
    Index images, pixels, channels;
    float* out;
};

// float32 as numbers.
struct Quantize {
    const float* in;
    Index count;  // values, a multiple of kLanes
    std::uint8_t* out;
    Numbers numbers;
};

// The same bytes to several places: `bytes` each, `count` of them `step` apart, and that for each of `images`.
struct Copy {
    const std::byte* from;
    std::byte* out;
    Index bytes, count, step, images, image_step;
};

// Weights that a thread will read next, and brings near while it computes.
struct Ahead {
    const char *next = nullptr, *end = nullptr;
};

struct Int8Kernels {
    const char* name;
    bool (*supported)();
    void (*begin)();  // in each thread, before its first step
    void (*end)();    // and behind its last
    // Each does a part of a step's items, from `first` to before `last`. Of blocks, line by line or column by column:
    void (*product)(const Product& step, Index first, Index last, Ahead& ahead);
    void (*norm)(const Norm& step, Index first, Index last);            // of rows
    void (*couple)(const Couple& step, Index first, Index last);        // of rows of all images
    // Of heads of all images:
    void (*attention)(const Attention& step, Index first, Index last, std::byte* scratch, Ahead& ahead);
    void (*picture)(const Picture& step, Index first, Index last);      // of rows of all images' height + 6
    void (*max_pool)(const MaxPool& step, Index first, Index last);     // of out_height of all images
    void (*average)(const Average& step, Index first, Index last);      // of rows of all images' height / stride
    void (*mean)(const Mean& step, Index first, Index last);            // of images
    void (*quantize)(const Quantize& step, Index first, Index last);    // of kLanes values
};

extern const Int8Kernels kInt8Amx, kInt8Avx512, kInt8Portable;

// Where the parts of attention's scratch memory are, in bytes from its start, which is aligned to 64.
struct AttentionScratch {
    Index depth;  // keys of a row of weights
    Index keys, values, offsets, products, weights, sums, end;

    AttentionScratch(Index tokens, Index size)
        : depth((tokens + kDepth - 1) / kDepth * kDepth),
          keys(0),
          values(keys + depth * kDepth),
          offsets(values + (size + kBlock - 1) / kBlock * kBlock * depth),
          products(offsets + depth * Index{sizeof(float)}),
          weights(products + kBlock * depth * Index{sizeof(std::int32_t)}),
          sums(weights + 2 * kBlock * depth),
          end(sums + 2 * kBlock * kBlock * Index{sizeof(std::int32_t)}) {}
};

// The bytes that attention needs beside.
inline Index attention_scratch(Index tokens, Index size) { return AttentionScratch(tokens, size).end; }

}  // namespace conformer_fast
