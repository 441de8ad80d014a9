// A panel of out = act(gamma * (x - mean) * rstd + beta), or of act(x) where no normalisation is owed.
#pragma once

#include "coefficients.h"
#include "convert.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind>
static inline void activate_run(const float* x, std::int64_t count, float slope, float* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = activate<kind>(x[i], slope);
}

template <Activation kind>
static inline void normalise_run(const float* x, std::int64_t count, const Coefficients& by, float slope, float* out) {
    for (std::int64_t i = 0; i < count; ++i)
        out[i] = activate<kind>(normalise(x[i], by.mean[i], by.rstd[i], by.gamma[i], by.beta[i]), slope);
}

template <Activation kind, typename T>
static void normalise_panel(const T* x, const Panel& panel, const Coefficients& by, const Owed& owed, T* out) {
    float room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        T* to = out + panel.at(l);
        const float* values = widen(x + panel.at(l), length, room);
        float* results = place(to, room);
        if (owed.statistics == nullptr) activate_run<kind>(values, length, owed.slope, results);
        else normalise_run<kind>(values, length, by, owed.slope, results);
        settle(results, length, to);
    }
}

}  // namespace fastgan::FASTGAN_ISA
