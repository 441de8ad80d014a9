// Memory for intermediate results that outlives the call: it is given out again, so that a pass does not begin with
// page faults, in huge pages where the system has them, as tiles are written all over it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "threads.h"

namespace fastgan::FASTGAN_ISA {

// A thread's pieces, taken and given back in the order of a stack; each grows to the largest that was asked for.
class Scratch {
public:
    void* take(std::int64_t bytes) {
        Piece& piece = pieces[taken];
        if (!KEEPS || piece.bytes < bytes) {
            std::free(piece.memory);
            piece = Piece{};
            piece.memory = std::malloc(static_cast<std::size_t>(bytes + PAGE));
            if (piece.memory == nullptr) throw std::bad_alloc();
            piece.bytes = bytes;
#ifdef MADV_HUGEPAGE
            if (KEEPS)
                madvise(aligned(piece.memory), static_cast<std::size_t>(bytes / PAGE * PAGE), MADV_HUGEPAGE);
#endif
        }
        ++taken;
        return aligned(piece.memory);
    }
    void give_back() { --taken; }

    ~Scratch() {
        for (Piece& piece : pieces) std::free(piece.memory);
    }

private:
#ifdef __SANITIZE_ADDRESS__
    static constexpr bool KEEPS = false;  // exactly what was asked for: its ends are guarded
    static constexpr std::int64_t PAGE = 1;
#else
    static constexpr bool KEEPS = true;
    static constexpr std::int64_t PAGE = 2 << 20;
#endif
    struct Piece {
        void* memory = nullptr;
        std::int64_t bytes = 0;
    };
    Piece pieces[5];
    int taken = 0;

    static void* aligned(void* memory) {
        return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE);
    }
};

static thread_local Scratch scratch;

// `count` elements for each thread of a loop: taken before the loop, out of which no exception may come.
template <typename T>
struct Rooms {
    std::int64_t count;
    T* first;

    Rooms(std::int64_t threads, std::int64_t count)
        : count(count), first(static_cast<T*>(scratch.take(threads * count * static_cast<std::int64_t>(sizeof(T))))) {}
    ~Rooms() { scratch.give_back(); }
    Rooms(const Rooms&) = delete;
    Rooms& operator=(const Rooms&) = delete;

    T* mine() const { return first + this_thread() * count; }
};

}  // namespace fastgan::FASTGAN_ISA
