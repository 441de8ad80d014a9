// CUDA's threads, blocks and warps on a CPU, to run kernels under sanitizers.
//
// The threads of a block are fibers of one system thread. Each runs until it reaches a barrier or returns. Between two
// barriers of the block, warps run one after another in a random order, and so do the threads of a warp between two
// shuffles: a result that depends on the order depends on the seed. Blocks run one after another, in a random order.
// `__shared__` variables are thread_local, which puts them into one piece of memory that is filled with NaN before each
// block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace simt {

constexpr unsigned WARP = 32;

[[noreturn]] void fail(const char* what);

// Sets the seed of the order of threads and blocks.
void seed(std::uint64_t number);

void run(dim3 grid, dim3 block, const std::function<void()>& kernel);

void barrier();

// The value of lane `from` of this warp, or this lane's `value` if there is no such lane.
std::uint32_t exchange(unsigned mask, std::uint32_t value, unsigned from);

}  // namespace simt
