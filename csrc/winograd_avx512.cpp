// AVX-512: 24 of 32 registers hold sums, 12 tiles by 32 channels.
#include <algorithm>
#include <cstring>

#include "winograd.h"
#include "x86.h"

namespace conformer_fast {
#ifdef CONFORMER_FAST_X86
namespace {

#define TARGET __attribute__((target("avx512f")))
#define ROWS 12

using Vector = __m512;

TARGET inline Vector fused(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }

TARGET inline Vector all(float x) { return _mm512_set1_ps(x); }

#include "winograd_tiles.h"

bool supported() { return __builtin_cpu_supports("avx512f"); }

}  // namespace

const WinogradKernel kWinogradAvx512 = {"avx512", supported, make_tiles};
#else
const WinogradKernel kWinogradAvx512 = {"avx512", [] { return false; }, nullptr};
#endif
}  // namespace conformer_fast
