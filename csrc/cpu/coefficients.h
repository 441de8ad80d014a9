// What is owed to a panel: its channels' coefficients, side by side as its lines are.
#pragma once

#include "convert.h"
#include "fastgan/norm.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

struct Coefficients {
    float mean[WIDTH], rstd[WIDTH], gamma[WIDTH], beta[WIDTH];

    Coefficients(const Owed& owed, const Panel& panel, std::int64_t channels) {
        if (owed.statistics == nullptr) return;  // and nothing reads them
        const float* statistics = owed.statistics + (owed.statistic_groups > 1 ? panel.group * channels : 0);
        const std::int64_t offset = owed.gamma_groups > 1 ? panel.group * channels : 0;
        repeated(statistics, panel, mean);
        repeated(statistics + owed.statistic_groups * channels, panel, rstd);
        repeated(owed.gamma + offset, panel, gamma);
        repeated(owed.beta + offset, panel, beta);
    }
};

// body(Kind{}) for the activation
template <Activation kind>
struct Kind {
    static constexpr Activation value = kind;
};

template <typename Body>
static inline void with_activation(Activation activation, Body body) {
    if (activation == Activation::none) body(Kind<Activation::none>{});
    if (activation == Activation::relu) body(Kind<Activation::relu>{});
    if (activation == Activation::leaky_relu) body(Kind<Activation::leaky_relu>{});
    if (activation == Activation::tanh) body(Kind<Activation::tanh>{});
}

// body(T{}, Kind{}, panel, coefficients) for every panel of a matrix, on `queue` threads
template <typename Body>
static inline void over_panels(const Panels& panels, const Owed& owed, std::int64_t queue, Body body) {
    with_type(panels.shape.dtype, [&](auto type) {
        with_activation(owed.activation, [&](auto kind) {
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < panels.count(); ++task) {
                const Panel panel = panels[task];
                body(type, kind, panel, Coefficients(owed, panel, panels.shape.channels));
            }
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
