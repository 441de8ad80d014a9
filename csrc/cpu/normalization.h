// The normalization of a panel: its channels' coefficients, side by side as its lines are.
#pragma once

#include "convert.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

struct Coefficients {
    float mean[WIDTH], rstd[WIDTH], gamma[WIDTH], beta[WIDTH];

    Coefficients(const Normalization& from, const Panel& panel, const Shape& shape) {
        if (from.stats == nullptr) return;  // and nothing reads them
        const float* stats = from.stats + panel.group * shape.channels;
        repeated(stats, panel, mean);
        repeated(stats + shape.groups * shape.channels, panel, rstd);
        repeated(from.gamma, panel, gamma);
        repeated(from.beta, panel, beta);
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
static inline void over_panels(const Panels& panels, const Normalization& normalization, std::int64_t queue,
                               Body body) {
    with_type(panels.shape.dtype, [&](auto type) {
        with_activation(normalization.activation, [&](auto kind) {
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < panels.count(); ++task) {
                const Panel panel = panels[task];
                body(type, kind, panel, Coefficients(normalization, panel, panels.shape));
            }
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
