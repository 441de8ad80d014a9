// The gradient through act(z), z = gamma * (x - mean) * rstd + beta, with known statistics:
//
//     gz = gout * act'(z),   gx = gz * gamma * rstd,   sums of gz and of gz * (x - mean) * rstd over each part
#include "through.h"

namespace fastgan::FASTGAN_ISA {

template <Activation kind>
static inline void through_run(const float* gout, const float* x, std::int64_t count, float slope, float* gx) {
    for (std::int64_t i = 0; i < count; ++i) gx[i] = through_activation<kind>(gout[i], x[i], slope);
}

template <Activation kind, typename T>
static void through_panel(const T* gout, const T* x, const Panel& panel, const Coefficients& by, const Owed& owed,
                          T* gx, float* sums, float* standardised_sums) {
    float incoming[WIDTH], room[WIDTH], gz[WIDTH], standardised[WIDTH], results_room[WIDTH];
    double line[WIDTH] = {}, standardised_line[WIDTH] = {};
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        T* to = gx + panel.at(l);
        const float* g = widen(gout + panel.at(l), length, incoming);
        const float* values = widen(x + panel.at(l), length, room);
        float* results = place(to, results_room);
        if (owed.statistics == nullptr) {
            through_run<kind>(g, values, length, owed.slope, results);
        } else {
            through_normalised_run<kind>(g, values, length, by, owed.slope, gz, standardised);
            for (std::int64_t i = 0; i < length; ++i) results[i] = gz[i] * (by.gamma[i] * by.rstd[i]);
            for (std::int64_t i = 0; i < length; ++i) line[i] += gz[i];
            for (std::int64_t i = 0; i < length; ++i) standardised_line[i] += gz[i] * standardised[i];
        }
        settle(results, length, to);
    }
    if (sums == nullptr) return;
    for (std::int64_t i = 0; i < panel.columns; ++i) {
        sums[i] = static_cast<float>(folded(line, panel, i));
        standardised_sums[i] = static_cast<float>(folded(standardised_line, panel, i));
    }
}

void normalise_activate_backward(const Shape& shape, const void* gout, const void* x, const Owed& owed,
                                 std::int64_t parts, void* gx, float* partials, std::int64_t queue) {
    const std::int64_t size = shape.groups * parts * shape.channels;
    const bool sums = owed.statistics != nullptr;
    over_panels(Panels(shape, parts), owed, queue,
                [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        const std::int64_t at = (panel.group * parts + panel.part) * shape.channels + panel.channel;
        through_panel<decltype(kind)::value>(static_cast<const T*>(gout), static_cast<const T*>(x), panel, by, owed,
                                             static_cast<T*>(gx), sums ? partials + at : nullptr,
                                             sums ? partials + size + at : nullptr);
    });
}

void finish_norm_gradient(const float* partials, std::int64_t channels, std::int64_t groups, std::int64_t parts,
                          const Owed& owed, float* out, std::int64_t queue) {
    const std::int64_t size = groups * channels;
    const float* rstd = owed.statistics + owed.statistic_groups * channels;
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t i = 0; i < size; ++i) {
        const std::int64_t group = i / channels, channel = i % channels;
        const float* at = partials + group * parts * channels + channel;
        double sum = 0.0, standardised = 0.0;
        for (std::int64_t t = 0; t < parts; ++t) {
            sum += at[t * channels];
            standardised += at[(groups * parts + t) * channels];
        }
        const NormGradient gradient =
            norm_gradient(static_cast<float>(sum), static_cast<float>(standardised),
                          rstd[owed.statistic_groups > 1 ? i : channel], owed.gamma[owed.gamma_groups > 1 ? i : channel]);
        out[i] = gradient.mean;
        out[size + i] = gradient.rstd;
        out[2 * size + i] = gradient.gamma;
        out[3 * size + i] = gradient.beta;
    }
}

}  // namespace fastgan::FASTGAN_ISA
