// Memory for intermediate results. It is kept after a call and reused, so that passes do not begin with page faults,
// and it is in huge pages if the system has them, because accesses are spread over all of it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastgan {

inline std::int64_t thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The buffers of a thread, taken and given back in the order of a stack; each grows to the largest size requested.
class ScratchStack {
public:
    void* take(std::int64_t bytes) {
        Buffer& buffer = buffers[taken];
        if (!IS_REUSED || buffer.bytes < bytes) {
            std::free(buffer.memory);
            buffer = Buffer{};
            buffer.memory = std::malloc(static_cast<std::size_t>(bytes + PAGE));
            if (buffer.memory == nullptr) throw std::bad_alloc();
            buffer.bytes = bytes;
#ifdef MADV_HUGEPAGE
            if (IS_REUSED)
                madvise(aligned(buffer.memory), static_cast<std::size_t>(bytes / PAGE * PAGE), MADV_HUGEPAGE);
#endif
        }
        ++taken;
        return aligned(buffer.memory);
    }
    void give_back() { --taken; }

    ~ScratchStack() {
        for (Buffer& buffer : buffers) std::free(buffer.memory);
    }

private:
#ifdef __SANITIZE_ADDRESS__
    static constexpr bool IS_REUSED = false;  // exact allocations, whose ends AddressSanitizer guards
    static constexpr std::int64_t PAGE = 1;
#else
    static constexpr bool IS_REUSED = true;
    static constexpr std::int64_t PAGE = 2 << 20;
#endif
    struct Buffer {
        void* memory = nullptr;
        std::int64_t bytes = 0;
    };
    Buffer buffers[5];
    int taken = 0;

    static void* aligned(void* memory) {
        return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE);
    }
};

inline thread_local ScratchStack scratch_stack;

// `count` elements for each of `threads` threads, taken before a parallel loop, which must not throw an exception.
template <typename T>
struct ScratchPool {
    std::int64_t count;
    T* data;

    ScratchPool(std::int64_t threads, std::int64_t count)
        : count(count), data(static_cast<T*>(scratch_stack.take(threads * count * std::int64_t{sizeof(T)}))) {}
    ~ScratchPool() { scratch_stack.give_back(); }
    ScratchPool(const ScratchPool&) = delete;
    ScratchPool& operator=(const ScratchPool&) = delete;

    T* of_this_thread() const { return data + thread_number() * count; }
};

}  // namespace fastgan
