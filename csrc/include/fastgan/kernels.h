// The kernels of a batch normalization and its activation, for every device.
//
// y, a, g and ga are matrices [rows, channels], row-major and contiguous: (N, C, H, W) channels_last tensors as
// [N*H*W, C]. The rows are `groups` equal parts with separate statistics. The last argument of a kernel, `queue`, is
// the number of threads on a CPU and the handle of the stream on CUDA. On CUDA, functions return after the launch,
// without allocating or waiting, and throw std::runtime_error with the name of the kernel if the launch fails.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastgan/activation.h"

namespace fastgan {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

enum class DType { float32, bfloat16, float16 };

inline std::size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

struct Shape {
    std::int64_t rows, channels, groups;
    DType dtype;

    std::int64_t group_rows() const { return rows / groups; }
};

// A batch normalization with given statistics, and the activation after it:
//     a = act(z),   z = gamma * xhat + beta,   xhat = (y - mean) * rstd
struct Normalization {
    const float* stats;  // [2, G, C]: mean and rstd
    const float* gamma;  // [C]
    const float* beta;   // [C]
    Activation activation;
    float slope;  // of leaky_relu
};

// The buffers of a batch normalization, updated group by group.
struct RunningStats {
    float* mean;  // [C] or null
    float* var;
    std::int64_t* num_batches_tracked;  // or null; G is added to it
    float momentum;                     // < 0: the average over all batches
};

// Memory for the partial results of a group. The number of `parts` depends only on the size of a group, so that results
// repeat bit for bit. Only CUDA needs it; on CPUs parts is 0.
struct Workspace {
    std::int64_t parts;
    float* partials;  // [3, G, parts, C] for batch_stats, [2, G, parts, C] for bn_backward_sums
    unsigned* tickets;  // C + 1 zeros, which each launch leaves as zeros
};

std::int64_t parts_of(std::int64_t group_rows, std::int64_t channels);

// stats [2, G, C]: the mean of y, and its biased variance (eps < 0) or rstd = 1 / sqrt(var + eps)
void batch_stats(const Shape&, const void* y, float eps, const RunningStats&, const Workspace&, float* stats,
                 std::int64_t queue);

// a [rows, C]; may be the memory of y
void bn_act_forward(const Shape&, const void* y, const Normalization&, void* a, std::int64_t queue);

// sums [2, G, C]: sum gz and sum gz * xhat, with gz = ga * act'(z); totals [2, C]: their sums over G > 1 groups, or null
void bn_backward_sums(const Shape&, const void* ga, const void* y, const Normalization&, const Workspace&, float* sums,
                      float* totals, std::int64_t queue);

// g [rows, C] = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) * inverse_count); without sums (null),
// gamma * rstd * gz. May be the memory of ga.
void bn_backward_apply(const Shape&, const void* ga, const void* y, const Normalization&, const float* sums,
                       float inverse_count, void* g, std::int64_t queue);

}  // namespace fastgan
