// The row kernels that every device has, as one table of functions, and what they are given.
//
// x, y, a, g and ga are matrices [rows, channels], row-major and contiguous: (N, C, H, W) channels_last tensors as
// [N*H*W, C]. The rows are `groups` equal parts. `queue`: the number of threads on a CPU, the stream's handle on CUDA.
#pragma once

#include <cstdint>

#include "fastgan/activation.h"

namespace fastgan {

enum class DType { float32, bfloat16, float16 };

struct Shape {
    std::int64_t rows, channels, groups;
    DType dtype;

    std::int64_t group_rows() const { return rows / groups; }
    std::int64_t size() const { return rows * channels; }
};

// A batch normalization with given statistics, and the activation after it:
//     a = act(z),   z = gamma * xhat + beta,   xhat = (y - mean) * rstd
struct Normalization {
    const float* stats;  // [2, G, C]: mean and rstd; null for the activation alone
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
    float momentum;                     // < 0: the plain average of all batches
};

// Into how many parts the partial results of a group are cut: by the sizes alone, so that results repeat bit for bit.
using Parts = std::int64_t(std::int64_t group_rows, std::int64_t channels);

// partials [3, G, parts, C]: count, mean and M2 = sum (x - mean)^2 of each part
using Measure = void(const Shape&, const void* x, std::int64_t parts, float* partials, std::int64_t queue);

// out [2, G, C]: the mean, and the biased variance (eps < 0) or rstd = 1 / sqrt(var + eps)
using FinishStatistics = void(const float* partials, std::int64_t channels, std::int64_t groups, std::int64_t parts,
                              float eps, const RunningStats&, float* out, std::int64_t queue);

// a; it may be the memory of y
using BnActForward = void(const Shape&, const void* y, const Normalization&, void* a, std::int64_t queue);

// g = ga * act'(z) from a = act(z), without batch normalization; g may be the memory of ga
using ActBackward = void(const Shape&, const void* ga, const void* a, Activation, float slope, void* g,
                         std::int64_t queue);

// sums [2, G, C]: sum gz and sum gz * xhat, with gz = ga * act'(z). partials [2, G, parts, C] is memory for the sums of
// each part on CUDA, null for one part; CPUs cut groups by themselves, and ignore both.
using BnBackwardSums = void(const Shape&, const void* ga, const void* y, const Normalization&, std::int64_t parts,
                            float* partials, float* sums, std::int64_t queue);

// g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) * inverse_count); without sums (null), gamma * rstd * gz.
// g may be the memory of ga.
using BnBackwardApply = void(const Shape&, const void* ga, const void* y, const Normalization&, const float* sums,
                             float inverse_count, void* g, std::int64_t queue);

// loss, probability [G] and gradient [rows] of logits [rows], G parts with a target each; targets are on the host
using LogisticLoss = void(const Shape&, const void* logits, const float* targets, float* loss, float* probability,
                          float* gradient, std::int64_t queue);

struct RowKernels {
    Parts* parts;
    Measure* measure;
    FinishStatistics* finish_statistics;
    BnActForward* bn_act_forward;
    ActBackward* act_backward;
    BnBackwardSums* bn_backward_sums;
    BnBackwardApply* bn_backward_apply;
    LogisticLoss* logistic;
};

}  // namespace fastgan
