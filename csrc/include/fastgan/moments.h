// Mean and variance without E[x^2] - E[x]^2: counts, means and centred sums of squares, merged in a fixed order.
// Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
#pragma once

#include "fastgan/inline.h"

namespace fastgan {

struct Moments {
    float count = 0.0f;
    float mean = 0.0f;
    float m2 = 0.0f;  // sum of (x - mean)^2
};

FASTGAN_INLINE Moments merge(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

}  // namespace fastgan
