// Vectors of 16 lanes, and what is multiplied, for int8_products.h and int8_rows.h. A file that includes this has
// defined TARGET, and LANES_AVX512 where that has AVX-512. All instruction sets compute the same, bit for bit.

using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));

// x - 0 is x, where 0 + x is not for -0, so that only this costs nothing.
TARGET inline Floats all(float x) { return x - Floats{}; }
TARGET inline Ints all(std::int32_t x) { return x - Ints{}; }

// What stands in memory may be of any alignment.
TARGET inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

TARGET inline Ints load(const std::int32_t* from) {
    Ints value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

TARGET inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
TARGET inline void store(std::int32_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }

TARGET inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

#ifdef LANES_AVX512

// x * y + z, rounded once.
TARGET inline Floats fused(Floats x, Floats y, Floats z) {
    return (Floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
}

TARGET inline Floats least(Floats x, Floats y) { return (Floats)_mm512_min_ps((__m512)x, (__m512)y); }
TARGET inline Floats largest(Floats x, Floats y) { return (Floats)_mm512_max_ps((__m512)x, (__m512)y); }

// To the nearest, half to even. |x| is less than 2^31.
TARGET inline Ints rounded(Floats x) { return (Ints)_mm512_cvtps_epi32((__m512)x); }

// x - floor(x)
TARGET inline Floats fraction(Floats x) { return (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF); }

// x * 2^floor(n)
TARGET inline Floats scaled(Floats x, Floats n) { return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n); }

TARGET inline Ints load(const std::uint8_t* from) {
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// The lowest 8 bits of each lane.
TARGET inline void store(std::uint8_t* to, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}

// Rounded, and held within 0 and 255. A NaN becomes 0.
TARGET inline void store_held(std::uint8_t* to, Floats x) {
    const __m512i whole = _mm512_cvtps_epi32((__m512)largest(x, Floats{}));  // 2^31 where it is more
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(whole));
}

#else

inline Floats fused(Floats x, Floats y, Floats z) {
    for (int lane = 0; lane < 16; ++lane) z[lane] = std::fma(x[lane], y[lane], z[lane]);
    return z;
}

// As x86 has them: y where either is NaN.
inline Floats least(Floats x, Floats y) { return x < y ? x : y; }
inline Floats largest(Floats x, Floats y) { return x > y ? x : y; }

inline Ints rounded(Floats x) {
    Ints out;
    for (int lane = 0; lane < 16; ++lane) out[lane] = static_cast<std::int32_t>(std::nearbyint(x[lane]));
    return out;
}

inline Floats fraction(Floats x) {
    for (int lane = 0; lane < 16; ++lane) x[lane] -= std::floor(x[lane]);
    return x;
}

inline Floats scaled(Floats x, Floats n) {
    for (int lane = 0; lane < 16; ++lane) x[lane] = std::ldexp(x[lane], static_cast<int>(std::floor(n[lane])));
    return x;
}

inline Ints load(const std::uint8_t* from) {
    Ints out;
    for (int lane = 0; lane < 16; ++lane) out[lane] = from[lane];
    return out;
}

inline void store(std::uint8_t* to, Ints x) {
    for (int lane = 0; lane < 16; ++lane) to[lane] = static_cast<std::uint8_t>(x[lane]);
}

inline void store_held(std::uint8_t* to, Floats x) {
    store(to, rounded(least(largest(x, Floats{}), Floats{} + 255.0f)));
}

#endif

// Asks for some of what lies ahead.
TARGET inline void fetch(Ahead& ahead) {
    constexpr Index kLine = 64, kLines = 4;
    if (ahead.next >= ahead.end) return;
    for (Index line = 0; line < kLines; ++line) __builtin_prefetch(ahead.next + line * kLine, 0, 2);
    ahead.next += kLines * kLine;
}

// Rows of numbers that meet a panel of weights, (kBlock, kBlock) sums. The first kTile rows begin at `first`, the
// others at `second`. Of a tap's `depth` numbers, rows and panel go on to a multiple of kDepth. Only the first `rows`
// rows are needed, but those of both tiles are readable. more: whether these are added to sums that are there already.
struct Block {
    const std::uint8_t *first, *second;
    Index row_step;
    const std::int32_t* tap;
    Index taps, depth;
    const std::int8_t* panel;
    Index rows;
    bool more;
};

// From values to numbers, which are not rounded yet: made once, as GCC does not take it out of loops.
struct Shift {
    Floats inverse, zero;
};

TARGET inline Shift shift_to(const Numbers& to) { return {all(to.inverse), all(static_cast<float>(to.zero))}; }

TARGET inline Floats shifted(Floats x, const Shift& to) { return fused(x, to.inverse, to.zero); }
