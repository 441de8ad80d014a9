// Back through act(z), z = gamma * xhat + beta, xhat = (y - mean) * rstd: gz = ga * act'(z), for a line of a panel.
#pragma once

#include "coefficients.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind>
static inline void through_normalised_run(const float* ga, const float* y, std::int64_t count, const Coefficients& by,
                                          float slope, float* gz, float* xhat) {
    for (std::int64_t i = 0; i < count; ++i) {
        xhat[i] = standardise(y[i], by.mean[i], by.rstd[i]);
        gz[i] = through_activation<kind>(ga[i], by.gamma[i] * xhat[i] + by.beta[i], slope);
    }
}

}  // namespace fastgan::FASTGAN_ISA
