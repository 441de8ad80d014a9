// CUDA's threads, blocks and warps on a CPU, to run kernels under sanitizers.
//
// The threads of a block are fibres of one thread of the system. Each runs until it meets a barrier or leaves. Between
// two barriers of the block one warp after another goes as far as it can, in an order that is drawn each time, and so
// is that of the threads of a warp between two shuffles: a result that hangs on these hangs on the seed. Blocks run one
// after another, in an order that is drawn too. `__shared__` variables are thread_local, which puts them into one piece
// of memory: every block finds it full of NaN.
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

// Decides the order of threads and blocks from now on.
void seed(std::uint64_t number);

void run(dim3 grid, dim3 block, const std::function<void()>& kernel);

void barrier();

// What lane `from` of this warp gives; a lane that is not there gives what `value` is.
std::uint32_t exchange(unsigned mask, std::uint32_t value, unsigned from);

}  // namespace simt
