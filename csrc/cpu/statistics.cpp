// Moments of each channel: of a part in two passes, the second out of the cache; parts are put together by Chan's rule
// for any number of them at once, in order and in float64:
//
//     n = sum n_t,   mean = sum n_t * mean_t / n,   M2 = sum M2_t + n_t * (mean_t - mean)^2
#include <cmath>

#include "convert.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

std::int64_t parts(std::int64_t group_rows, std::int64_t channels) { return parts_of(group_rows, channels); }

template <typename T>
static void measure_panel(const T* x, const Panel& panel, float* count, float* mean, float* m2) {
    float room[WIDTH];
    double line[WIDTH] = {}, means[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        const float* values = widen(x + panel.at(l), length, room);
        for (std::int64_t i = 0; i < length; ++i) line[i] += values[i];
    }
    for (std::int64_t i = 0; i < panel.columns; ++i) {
        const double exact = folded(line, panel, i) / static_cast<double>(most(panel.rows, 1));
        mean[i] = static_cast<float>(exact);
        count[i] = static_cast<float>(panel.rows);
        for (std::int64_t row = 0; row < panel.repeat; ++row) means[row * panel.columns + i] = exact;
    }
    for (double& sum : line) sum = 0.0;
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        const float* values = widen(x + panel.at(l), length, room);
        for (std::int64_t i = 0; i < length; ++i) {
            const double distance = values[i] - means[i];
            line[i] += distance * distance;
        }
    }
    for (std::int64_t i = 0; i < panel.columns; ++i) m2[i] = static_cast<float>(folded(line, panel, i));
}

void measure(const Shape& shape, const void* x, std::int64_t parts, float* partials, std::int64_t queue) {
    const Panels panels(shape, parts);
    const std::int64_t size = shape.groups * parts * shape.channels;
    with_type(shape.dtype, [&](auto type) {
        using T = decltype(type);
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t task = 0; task < panels.count(); ++task) {
            const Panel panel = panels[task];
            float* to = partials + (panel.group * parts + panel.part) * shape.channels + panel.channel;
            measure_panel(static_cast<const T*>(x), panel, to, to + size, to + 2 * size);
        }
    });
}

struct Merged {
    double count, mean, m2;
};

static Merged merge_parts(const float* at, std::int64_t size, std::int64_t parts, std::int64_t channels) {
    double count = 0.0, sum = 0.0, m2 = 0.0;
    for (std::int64_t t = 0; t < parts; ++t) {
        const double n = at[t * channels];
        count += n;
        sum += n * at[t * channels + size];
    }
    const double mean = sum / (count > 0.0 ? count : 1.0);
    for (std::int64_t t = 0; t < parts; ++t) {
        const double distance = at[t * channels + size] - mean;
        m2 += at[t * channels + 2 * size] + at[t * channels] * distance * distance;
    }
    return {count, mean, m2};
}

// As nn.BatchNorm2d does in a call: with the unbiased variance.
static void update(const RunningStats& running, std::int64_t channel, std::int64_t group, const Merged& merged) {
    const float factor = running.momentum < 0.0f
                             ? 1.0f / static_cast<float>(*running.num_batches_tracked + group + 1)
                             : running.momentum;
    const double unbiased = merged.m2 / (merged.count > 1.0 ? merged.count - 1.0 : 1.0);
    float& mean = running.mean[channel];
    float& var = running.var[channel];
    mean = (1.0f - factor) * mean + factor * static_cast<float>(merged.mean);
    var = (1.0f - factor) * var + factor * static_cast<float>(unbiased);
}

void finish_statistics(const float* partials, std::int64_t channels, std::int64_t groups, std::int64_t parts, float eps,
                       const RunningStats& running, float* out, std::int64_t queue) {
    const std::int64_t size = groups * parts * channels;
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t channel = 0; channel < channels; ++channel) {
        for (std::int64_t group = 0; group < groups; ++group) {
            const Merged merged = merge_parts(partials + group * parts * channels + channel, size, parts, channels);
            const double var = merged.m2 / (merged.count > 0.0 ? merged.count : 1.0);
            float* to = out + group * channels + channel;
            to[0] = static_cast<float>(merged.mean);
            to[groups * channels] =
                static_cast<float>(eps < 0.0f ? var : 1.0 / std::sqrt(var + static_cast<double>(eps)));
            if (running.mean != nullptr) update(running, channel, group, merged);
        }
    }
    if (running.num_batches_tracked != nullptr) *running.num_batches_tracked += groups;  // every channel has read it
}

}  // namespace fastgan::FASTGAN_ISA
