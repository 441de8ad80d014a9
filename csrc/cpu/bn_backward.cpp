// The backward of batch normalization and its activation in two passes over ga and y, both [M, C] for each group:
//
//     sums    sum gz and sum gz * xhat,   gz = ga * act'(z),  z = gamma * xhat + beta,  xhat = (y - mean) * rstd
//     apply   g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) / M)
//
// Each panel is summed line by line in float64; panels are added in order, so that results repeat bit for bit.
#include "normalization.h"
#include "scratch.h"

namespace fastgan::FASTGAN_ISA {

// gz and xhat of a line of a panel
template <Activation kind>
static inline void gz_and_xhat(const float* ga, const float* y, std::int64_t count, const Coefficients& by, float slope,
                               float* gz, float* xhat) {
    for (std::int64_t i = 0; i < count; ++i) {
        xhat[i] = (y[i] - by.mean[i]) * by.rstd[i];
        gz[i] = activation_backward_from_input<kind>(ga[i], by.gamma[i] * xhat[i] + by.beta[i], slope);
    }
}

template <Activation kind, typename T>
static void sum_panel(const T* ga, const T* y, const Panel& panel, const Coefficients& by, float slope, double* sums,
                      double* xhat_sums) {
    float ga_room[WIDTH], y_room[WIDTH], gz[WIDTH], xhat[WIDTH];
    double line[WIDTH] = {}, xhat_line[WIDTH] = {};
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t at = panel.at(l), length = panel.length(l);
        gz_and_xhat<kind>(widen(ga + at, length, ga_room), widen(y + at, length, y_room), length, by, slope, gz, xhat);
        for (std::int64_t i = 0; i < length; ++i) line[i] += gz[i];
        for (std::int64_t i = 0; i < length; ++i) xhat_line[i] += gz[i] * xhat[i];
    }
    for (std::int64_t i = 0; i < panel.columns; ++i) {
        sums[i] = folded(line, panel, i);
        xhat_sums[i] = folded(xhat_line, panel, i);
    }
}

void bn_backward_sums(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                      std::int64_t, float*, float* sums, std::int64_t queue) {
    const Panels panels(shape);
    const std::int64_t parts = panels.parts, channels = shape.channels, size = shape.groups * parts * channels;
    const Rooms<double> room(1, 2 * size);  // [2, G, parts, C]
    double* partials = room.first;
    over_panels(panels, normalization, queue,
                [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        double* to = partials + (panel.group * parts + panel.part) * channels + panel.channel;
        sum_panel<decltype(kind)::value>(static_cast<const T*>(ga), static_cast<const T*>(y), panel, by,
                                         normalization.slope, to, to + size);
    });
    for (std::int64_t i = 0; i < 2 * shape.groups; ++i) {
        double* total = partials + i * parts * channels;  // of the first part: the others are added, row by row
        for (std::int64_t t = 1; t < parts; ++t)
            for (std::int64_t c = 0; c < channels; ++c) total[c] += total[t * channels + c];
        for (std::int64_t c = 0; c < channels; ++c) sums[i * channels + c] = static_cast<float>(total[c]);
    }
}

// sums / M of a panel's channels; none where running statistics have normalized, through which nothing flows
struct Means {
    float gz[WIDTH], gz_xhat[WIDTH];
    bool known;

    Means(const Shape& shape, const Panel& panel, const float* sums, float inverse_count)
        : known(sums != nullptr) {
        if (!known) return;
        const float* at = sums + panel.group * shape.channels;
        repeated(at, panel, gz);
        repeated(at + shape.groups * shape.channels, panel, gz_xhat);
        for (float& mean : gz) mean *= inverse_count;
        for (float& mean : gz_xhat) mean *= inverse_count;
    }
};

template <Activation kind, typename T>
static void apply_panel(const T* ga, const T* y, const Panel& panel, const Coefficients& by, const Means& means,
                        float slope, T* g) {
    float ga_room[WIDTH], y_room[WIDTH], gz[WIDTH], xhat[WIDTH], room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t at = panel.at(l), length = panel.length(l);
        gz_and_xhat<kind>(widen(ga + at, length, ga_room), widen(y + at, length, y_room), length, by, slope, gz, xhat);
        float* to = place(g + at, room);
        if (means.known)
            for (std::int64_t i = 0; i < length; ++i) gz[i] -= means.gz[i] + xhat[i] * means.gz_xhat[i];
        for (std::int64_t i = 0; i < length; ++i) to[i] = by.gamma[i] * by.rstd[i] * gz[i];
        settle(to, length, g + at);
    }
}

void bn_backward_apply(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                       const float* sums, float inverse_count, void* g, std::int64_t queue) {
    over_panels(Panels(shape), normalization, queue,
                [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        apply_panel<decltype(kind)::value>(static_cast<const T*>(ga), static_cast<const T*>(y), panel, by,
                                           Means(shape, panel, sums, inverse_count), normalization.slope,
                                           static_cast<T*>(g));
    });
}

}  // namespace fastgan::FASTGAN_ISA
