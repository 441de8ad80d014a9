// Binary cross-entropy of one logit that shall say `target`, with sigma = sigmoid; no term cancels another.
#pragma once

#include <cmath>

#include "fastgan/inline.h"

namespace fastgan {

struct Logistic {
    float loss;         // -t log sigma(l) - (1 - t) log(1 - sigma(l)) = w |l| + log(1 + u)
    float gradient;     // (1 - t) sigma(l) - t sigma(-l)
    float probability;  // sigma(l)
};

FASTGAN_INLINE Logistic logistic(float logit, float target) {
    const float u = expf(-fabsf(logit)), wrong = logit > 0.0f ? 1.0f - target : target;
    const float above = 1.0f / (1.0f + u), below = u / (1.0f + u);  // sigma(|l|), sigma(-|l|)
    const float right = logit > 0.0f ? above : below, left = logit > 0.0f ? below : above;
    // not 0 * inf for a logit that is sure of what is true; NaN stays NaN
    const float linear = wrong == 0.0f && logit == logit ? 0.0f : wrong * fabsf(logit);
    return {linear + log1pf(u), (1.0f - target) * right - target * left, right};
}

}  // namespace fastgan
