// Which of the threads of a loop this is, and memory for each of them.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels.h"

namespace fastgan::FASTGAN_ISA {

static inline std::int64_t this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// `count` elements for each thread: allocated before the loop, out of which no exception may come.
template <typename T>
struct Rooms {
    std::int64_t count;
    T* first;

    Rooms(std::int64_t threads, std::int64_t count) : count(count), first(new T[threads * count]) {}
    ~Rooms() { delete[] first; }
    Rooms(const Rooms&) = delete;
    Rooms& operator=(const Rooms&) = delete;

    T* mine() const { return first + this_thread() * count; }
};

}  // namespace fastgan::FASTGAN_ISA
