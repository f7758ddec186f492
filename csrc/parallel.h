// Work that threads share.
#pragma once

#include <cstddef>
#include <functional>

namespace conformer_fast {

// Calls work(0) ... work(items - 1), each by whichever of at most `threads` threads is free. The first error of any
// thread is raised once all have stopped.
void in_parallel(std::size_t items, std::size_t threads, const std::function<void(std::size_t)>& work);

}  // namespace conformer_fast
