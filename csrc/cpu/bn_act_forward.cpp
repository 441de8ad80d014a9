// a = act(gamma * (y - mean) * rstd + beta), or act(y) without a normalization, panel by panel.
#include "normalization.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind, typename T>
static void bn_act_panel(const T* y, const Panel& panel, const Coefficients& by, const Normalization& normalization,
                         T* a) {
    float room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        T* to = a + panel.at(l);
        const float* values = widen(y + panel.at(l), length, room);
        float* results = place(to, room);
        if (normalization.stats == nullptr) {
            for (std::int64_t i = 0; i < length; ++i) results[i] = activate<kind>(values[i], normalization.slope);
        } else {
            for (std::int64_t i = 0; i < length; ++i)
                results[i] = activate<kind>(by.gamma[i] * ((values[i] - by.mean[i]) * by.rstd[i]) + by.beta[i],
                                            normalization.slope);
        }
        settle(results, length, to);
    }
}

void bn_act_forward(const Shape& shape, const void* y, const Normalization& normalization, void* a,
                    std::int64_t queue) {
    over_panels(Panels(shape), normalization, queue,
                [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        bn_act_panel<decltype(kind)::value>(static_cast<const T*>(y), panel, by, normalization, static_cast<T*>(a));
    });
}

}  // namespace fastgan::FASTGAN_ISA
