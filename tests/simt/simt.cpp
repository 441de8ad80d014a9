// The implementation of threads: optimized, and without sanitizers, which are for the kernels.
#include "simt.h"

#include <link.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace simt {
namespace {

// A stack, and switches to it and back, which are announced to AddressSanitizer.
class Fibre {
public:
    void start(std::function<void()> task) {
        body = std::move(task);
        getcontext(&inside);
        inside.uc_stack.ss_sp = stack.get();
        inside.uc_stack.ss_size = SIZE;
        const auto self = reinterpret_cast<std::uintptr_t>(this);
        makecontext(&inside, reinterpret_cast<void (*)()>(&enter), 2, static_cast<unsigned>(self >> 32),
                    static_cast<unsigned>(self));
    }

    void resume() {
        leave_for(&outside_fake, stack.get(), SIZE);
        swapcontext(&outside, &inside);
        arrived(outside_fake);
    }

    void pause() {
        leave_for(&inside_fake, outside_stack, outside_size);
        swapcontext(&inside, &outside);
        arrived(inside_fake);
    }

private:
    static constexpr std::size_t SIZE = 1 << 17;
    std::unique_ptr<char[]> stack{new char[SIZE]};
    std::function<void()> body;
    ucontext_t inside, outside;
    void *outside_fake = nullptr, *inside_fake = nullptr;
    const void* outside_stack = nullptr;
    std::size_t outside_size = 0;

    static void enter(unsigned high, unsigned low) {
        Fibre* self = reinterpret_cast<Fibre*>(static_cast<std::uintptr_t>(high) << 32 | low);
        self->arrived(nullptr);
        self->body();
        self->leave_for(nullptr, self->outside_stack, self->outside_size);
        setcontext(&self->outside);
    }

    void leave_for(void** fake, const void* bottom, std::size_t size) {
        __sanitizer_start_switch_fiber(fake, bottom, size);
    }
    void arrived(void* fake) {
        const void* bottom;
        std::size_t size;
        __sanitizer_finish_switch_fiber(fake, &bottom, &size);
        if (bottom != stack.get()) outside_stack = bottom, outside_size = size;
    }
};

class Threads {
public:
    std::mt19937_64 random;

    void run(dim3 grid, dim3 block, const std::function<void()>& kernel) {
        gridDim = grid, blockDim = block;
        if (block.y * block.z != 1 || block.x % WARP != 0) fail("only blocks of one dimension, of whole warps");
        while (fibres.size() < block.x) fibres.push_back(std::make_unique<Fibre>());
        std::vector<std::uint64_t> blocks(static_cast<std::uint64_t>(grid.x) * grid.y * grid.z);
        std::iota(blocks.begin(), blocks.end(), 0);
        std::shuffle(blocks.begin(), blocks.end(), random);
        for (const std::uint64_t index : blocks) {
            blockIdx = dim3(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
            run_block(kernel);
        }
    }

    void barrier() {
        if (at_barrier.size() + 1 == blockDim.x) draw_ranks();
        wait(at_barrier, blockDim.x);
    }

    std::uint32_t exchange(unsigned mask, std::uint32_t value, unsigned from) {
        if (mask != 0xffffffffu) fail("a shuffle of less than a warp");
        const unsigned self = running, first = self / WARP * WARP;
        turn[self] = !turn[self];  // until all are at the next shuffle, some may still read values of this one
        given[turn[self]][self] = value;
        wait(at_shuffle[self / WARP], WARP);
        return from < WARP ? given[turn[self]][first + from] : value;
    }

private:
    std::vector<std::unique_ptr<Fibre>> fibres;
    std::vector<std::uint64_t> rank;  // of threads: the lowest goes first
    std::set<std::pair<std::uint64_t, unsigned>> ready;
    std::vector<unsigned> at_barrier;
    std::vector<std::vector<unsigned>> at_shuffle;  // by warp
    std::vector<bool> turn;
    std::vector<std::uint32_t> given[2];
    unsigned running = 0, left = 0;

    void draw_ranks() {
        for (unsigned thread = 0; thread < rank.size(); ++thread) {
            const std::uint64_t warp = thread % WARP ? rank[thread - 1] >> 32 : random() >> 32;
            rank[thread] = warp << 32 | random() >> 32;
        }
    }

    void wait(std::vector<unsigned>& place, unsigned all) {
        place.push_back(running);
        if (place.size() == all) {
            for (const unsigned thread : place) ready.emplace(rank[thread], thread);
            place.clear();
        }
        fibres[running]->pause();
    }

    void run_block(const std::function<void()>& kernel) {
        dl_iterate_phdr(poison_shared, nullptr);
        at_barrier.clear();
        at_shuffle.assign(blockDim.x / WARP, {});
        turn.assign(blockDim.x, false);
        for (auto& each : given) each.assign(blockDim.x, 0);
        rank.resize(blockDim.x);
        draw_ranks();
        left = 0;
        for (unsigned thread = 0; thread < blockDim.x; ++thread) {
            fibres[thread]->start([this, &kernel] { kernel(), ++left; });
            ready.emplace(rank[thread], thread);
        }
        while (!ready.empty()) {
            running = ready.begin()->second;
            ready.erase(ready.begin());
            threadIdx = dim3(running, 0, 0);
            fibres[running]->resume();
        }
        if (left < blockDim.x) fail("deadlock: threads wait for others that have left or wait elsewhere");
    }

    static int poison_shared(dl_phdr_info* program, std::size_t, void*) {
        for (int i = 0; i < program->dlpi_phnum; ++i) {
            const ElfW(Phdr)& header = program->dlpi_phdr[i];
            if (header.p_type == PT_TLS) std::memset(program->dlpi_tls_data, 0xff, header.p_memsz);
        }
        return 1;  // the executable comes first; stop after it
    }
};

Threads threads;

}  // namespace

void fail(const char* what) {
    std::fprintf(stderr, "simt: %s, block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
    std::_Exit(3);
}

void seed(std::uint64_t number) { threads.random.seed(number); }
void run(dim3 grid, dim3 block, const std::function<void()>& kernel) { threads.run(grid, block, kernel); }
void barrier() { threads.barrier(); }
std::uint32_t exchange(unsigned mask, std::uint32_t value, unsigned from) {
    return threads.exchange(mask, value, from);
}

}  // namespace simt
