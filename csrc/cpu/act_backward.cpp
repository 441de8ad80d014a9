// g = ga * act'(z) from a = act(z), panel by panel.
#include "normalization.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind, typename T>
static void act_backward_panel(const T* ga, const T* a, const Panel& panel, float slope, T* g) {
    float ga_room[WIDTH], a_room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t at = panel.at(l), length = panel.length(l);
        const float* gradients = widen(ga + at, length, ga_room);
        const float* values = widen(a + at, length, a_room);
        float* results = place(g + at, ga_room);
        for (std::int64_t i = 0; i < length; ++i)
            results[i] = activation_backward<kind>(gradients[i], values[i], slope);
        settle(results, length, g + at);
    }
}

void act_backward(const Shape& shape, const void* ga, const void* a, Activation activation, float slope, void* g,
                  std::int64_t queue) {
    over_panels(Panels(shape), {nullptr, nullptr, nullptr, activation, slope}, queue,
                [&](auto type, auto kind, const Panel& panel, const Coefficients&) {
        using T = decltype(type);
        act_backward_panel<decltype(kind)::value>(static_cast<const T*>(ga), static_cast<const T*>(a), panel, slope,
                                                  static_cast<T*>(g));
    });
}

}  // namespace fastgan::FASTGAN_ISA
