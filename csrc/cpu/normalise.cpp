// out = act(gamma * (x - mean) * rstd + beta), or act(x) without a normalization, panel by panel.
#include "coefficients.h"
#include "convert.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind, typename T>
static void normalise_panel(const T* x, const Panel& panel, const Coefficients& by, const Owed& owed, T* out) {
    float room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        T* to = out + panel.at(l);
        const float* values = widen(x + panel.at(l), length, room);
        float* results = place(to, room);
        if (owed.statistics == nullptr) {
            for (std::int64_t i = 0; i < length; ++i) results[i] = activate<kind>(values[i], owed.slope);
        } else {
            for (std::int64_t i = 0; i < length; ++i)
                results[i] = activate<kind>(
                    normalise(values[i], by.mean[i], by.rstd[i], by.gamma[i], by.beta[i]), owed.slope);
        }
        settle(results, length, to);
    }
}

void normalise_activate(const Shape& shape, const void* x, const Owed& owed, void* out, std::int64_t queue) {
    over_panels(Panels(shape), owed, queue, [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        normalise_panel<decltype(kind)::value>(static_cast<const T*>(x), panel, by, owed, static_cast<T*>(out));
    });
}

}  // namespace fastgan::FASTGAN_ISA
