// The normalisation that is owed to x, and the gradients around it.
#pragma once

#include "fastgan/inline.h"

namespace fastgan {

// (x - mean) * rstd: what gamma scales
FASTGAN_INLINE float standardise(float x, float mean, float rstd) { return (x - mean) * rstd; }

// z = gamma * (x - mean) * rstd + beta
FASTGAN_INLINE float normalise(float x, float mean, float rstd, float gamma, float beta) {
    return gamma * standardise(x, mean, rstd) + beta;
}

// What flows into y through its statistics, as g = gy + offset + steepness * (y - mean):
struct ThroughStatistics {
    float offset;     // gmean / M
    float steepness;  // 2 * gvar / M, or -rstd^3 * grstd / M
    float mean;
};

FASTGAN_INLINE ThroughStatistics through_var(float gmean, float gvar, float mean, float inverse_count) {
    return {gmean * inverse_count, 2.0f * gvar * inverse_count, mean};
}

FASTGAN_INLINE ThroughStatistics through_rstd(float gmean, float grstd, float mean, float rstd, float inverse_count) {
    return {gmean * inverse_count, -rstd * rstd * rstd * grstd * inverse_count, mean};
}

FASTGAN_INLINE float through_statistics(float gy, float y, ThroughStatistics by) {
    return gy + (by.offset + by.steepness * (y - by.mean));
}

// Gradients of a channel's mean, rstd, gamma and beta from sum gz and sum gz * standardise(x)
struct NormGradient {
    float mean, rstd, gamma, beta;
};

FASTGAN_INLINE NormGradient norm_gradient(float sum_gz, float sum_gz_standardised, float rstd, float gamma) {
    return {-gamma * rstd * sum_gz, gamma * sum_gz_standardised / rstd, sum_gz_standardised, sum_gz};
}

}  // namespace fastgan
