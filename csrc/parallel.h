// Work that threads share.
#pragma once

#include <cstddef>
#include <functional>

namespace conformer_fast {

// Calls work(0) ... work(items - 1), each by whichever of at most `threads` threads is free. The first error of any
// thread is raised once all have stopped.
void in_parallel(std::size_t items, std::size_t threads, const std::function<void(std::size_t)>& work);

// Calls work(0, of) ... work(of - 1, of) at the same time, each in a thread: `of` is `threads`, or as many as the system
// has room for. They may wait for each other, and must not raise errors.
void together(std::size_t threads, const std::function<void(std::size_t thread, std::size_t of)>& work);

}  // namespace conformer_fast
