// The row kernels that every device has, as one table of functions, and what they are given.
//
// x is a matrix [rows, channels], row-major and contiguous: an (N, C, H, W) channels_last tensor seen as [N*H*W, C]. Its
// rows are `groups` equal parts. `queue` is the number of threads on a CPU, the stream's handle on CUDA.
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

// A normalisation with known statistics, or none (null), and an activation. Vectors are [1 or G, C].
struct Owed {
    const float* statistics;  // [2, 1 or G, C]: mean and rstd
    std::int64_t statistic_groups;
    const float* gamma;
    const float* beta;
    std::int64_t gamma_groups;
    Activation activation;
    float slope;
};

// What is made of partial moments: the variance (eps < 0) or rstd = 1 / sqrt(var + eps), and running statistics.
struct Measurement {
    float eps;
    float* running_mean;  // [C] or null, updated group by group
    float* running_var;
    std::int64_t* tracked;  // or null: a count of batches, plus G
    float momentum;         // < 0: the plain average of the `tracked` batches
};

// Into how many parts the partial results of a group are cut: by the sizes alone, so that results repeat bit for bit.
using Parts = std::int64_t(std::int64_t group_rows, std::int64_t channels);

// partials [3, G, parts, C]: count, mean and M2 = sum (x - mean)^2 of each part
using Measure = void(const Shape&, const void* x, std::int64_t parts, float* partials, std::int64_t queue);

// out [2, G, C]: mean and spread
using FinishStatistics = void(const float* partials, std::int64_t channels, std::int64_t groups, std::int64_t parts,
                              const Measurement&, float* out, std::int64_t queue);

// out = act(z), z = gamma * (x - mean) * rstd + beta
using NormaliseActivate = void(const Shape&, const void* x, const Owed&, void* out, std::int64_t queue);

// gz = gout * act'(z), gx = gz * gamma * rstd, which may lie where gout does; partials [2, G, parts, C]: sums of gz and gz * (x - mean) * rstd
using NormaliseActivateBackward = void(const Shape&, const void* gout, const void* x, const Owed&, std::int64_t parts,
                                       void* gx, float* partials, std::int64_t queue);

// out [4, G, C]: gradients of mean, rstd, gamma and beta
using FinishNormGradient = void(const float* partials, std::int64_t channels, std::int64_t groups, std::int64_t parts,
                                const Owed&, float* out, std::int64_t queue);

// g = gy + offset + steepness * (y - mean), from gstatistics and statistics [2, G, C]
using ThroughStatisticsOf = void(const Shape&, const void* gy, const void* y, const float* gstatistics,
                                 const float* statistics, bool spread_is_rstd, void* g, std::int64_t queue);

// loss, probability [G] and gradient [rows] of logits [rows], G parts with a target each; targets are on the host
using LogisticLoss = void(const Shape&, const void* logits, const float* targets, float* loss, float* probability,
                          float* gradient, std::int64_t queue);

struct RowKernels {
    Parts* parts;
    Measure* measure;
    FinishStatistics* finish_statistics;
    NormaliseActivate* normalise_activate;
    NormaliseActivateBackward* normalise_activate_backward;
    FinishNormGradient* finish_norm_gradient;
    ThroughStatisticsOf* through_statistics;
    LogisticLoss* logistic;
};

}  // namespace fastgan
