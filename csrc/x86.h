// Whether the compiler can build functions for other instruction sets than the file's, and ask the CPU for them.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define CONFORMER_FAST_X86 1
#include <immintrin.h>
#endif
