// The loss on logits with its gradient, in one launch: a block reads a part of the batch once.
#include "fastgan/logistic.h"

#include <algorithm>

#include "elements.h"
#include "kernels.h"
#include "tile.h"

namespace fastgan::cuda {
namespace {

constexpr int64_t MOST_TARGETS = 16;  // of a launch: they come as its argument, so that a graph keeps them

struct Targets {
    float of[MOST_TARGETS];
};

// grid (groups)
template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS) logistic_kernel(const T* __restrict__ logits,  // [groups, size]
                                                           int64_t size, const __grid_constant__ Targets targets,
                                                           float* __restrict__ loss, float* __restrict__ probability,
                                                           float* __restrict__ gradient) {  // [groups, size]
    const float target = targets.of[blockIdx.x];
    Sums sums[1];
    for (int64_t i = threadIdx.x; i < size; i += THREADS) {
        const int64_t at = blockIdx.x * size + i;
        const Logistic of = fastgan::logistic(widen(logits[at]), target);
        sums[0] = merge(sums[0], {of.loss, of.probability});
        gradient[at] = of.gradient / static_cast<float>(size);
    }
    const Sums total = merge_rows(sums, 0);
    if (threadIdx.x == 0) {
        loss[blockIdx.x] = total.first / static_cast<float>(size);
        probability[blockIdx.x] = total.second / static_cast<float>(size);
    }
}

}  // namespace

void logistic(const Shape& shape, const void* logits, const float* targets, float* loss, float* probability,
              float* gradient, int64_t queue) {
    const int64_t size = shape.group_rows();
    for (int64_t first = 0; first < shape.groups; first += MOST_TARGETS) {
        const int64_t some = std::min(MOST_TARGETS, shape.groups - first);
        Targets of{};
        std::copy_n(targets + first, some, of.of);
        with_type(shape.dtype, [&](auto type) {
            using T = typename decltype(type)::type;
            launch("logistic", logistic_kernel<T>, {some}, queue, static_cast<const T*>(logits) + first * size, size,
                   of, loss + first, probability + first, gradient + first * size);
        });
    }
}

}  // namespace fastgan::cuda
