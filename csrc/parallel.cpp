#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace conformer_fast {

void in_parallel(std::size_t items, std::size_t threads, const std::function<void(std::size_t)>& work) {
    threads = std::min(threads, std::max(items, std::size_t{1}));
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> errors(threads);
    const auto run = [&](std::size_t thread) {
        try {
            for (std::size_t i = next++; i < items; i = next++) work(i);
        } catch (...) {
            errors[thread] = std::current_exception();
            next = items;
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);  // an error from here on would meet threads that run
    try {
        for (std::size_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    } catch (const std::exception&) {  // neither memory nor the system has room for more: those there are do the work
    }
    run(0);
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
}

void together(std::size_t threads, const std::function<void(std::size_t, std::size_t)>& work) {
    std::atomic<std::size_t> of{0};
    const auto run = [&](std::size_t thread) {
        while (of == 0) std::this_thread::yield();
        work(thread, of);
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (std::size_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    } catch (const std::exception&) {  // no room for more
    }
    of = others.size() + 1;
    run(0);
    for (std::thread& other : others) other.join();
}

}  // namespace conformer_fast
