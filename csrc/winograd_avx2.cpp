// AVX2 with fused multiply-adds: 12 of 16 registers hold sums, 6 tiles by 16 channels.
#include <algorithm>
#include <cstring>

#include "winograd.h"
#include "x86.h"

namespace conformer_fast {
#ifdef CONFORMER_FAST_X86
namespace {

#define TARGET __attribute__((target("avx2,fma")))
#define ROWS 6

using Vector = __m256;

TARGET inline Vector fused(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }

TARGET inline Vector all(float x) { return _mm256_set1_ps(x); }

#include "winograd_tiles.h"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const WinogradKernel kWinogradAvx2 = {"avx2", supported, make_tiles};
#else
const WinogradKernel kWinogradAvx2 = {"avx2", [] { return false; }, nullptr};
#endif
}  // namespace conformer_fast
