// The last convolution of a discriminator: its kernel is as large as its image, so that it is a dot product, and its
// gradients are an outer product and a weighted sum. With k = (pixel, channel), and a = what is owed to x, done on the way:
//
//     y[n, o]  = bias[o] + sum_k a[n, k] w[o, k]
//     ga[n, k] = sum_o g[n, o] w[o, k]
//     gw[o, k] = sum_n g[n, o] a[n, k]
//
// An image is read line by line, of at most WIDTH elements. A line's product is taken in vectors of float32 and those of
// lines are added in float64; the weighted sum goes IMAGES images at a time, each from zero.
#include "normalise.h"
#include "vector.h"

namespace fastgan::FASTGAN_ISA {

constexpr std::int64_t IMAGES = 16;  // for which what is owed to a panel is set out once

// An image in panels, of which all have the same number of lines.
static inline Panels panels_of(const Head& head) { return {{head.pixels, head.x.channels, 1, head.x.dtype}, 1}; }

// A line of a: where it lies, or in `room`.
template <Activation kind, typename T>
static inline const float* fetched(const T* x, std::int64_t length, const Coefficients& by, const Owed& owed,
                                   float* room) {
    const float* values = widen(x, length, room);
    if (owed.statistics != nullptr) normalise_run<kind>(values, length, by, owed.slope, room);
    else if (kind != Activation::none) activate_run<kind>(values, length, owed.slope, room);
    else return values;
    return room;
}

static inline double dot(const float* a, const float* b, std::int64_t count) {
    Vector sums{};
    double total = 0.0;
    over_channels(count, [&](auto vector, std::int64_t i) {
        using V = decltype(vector);
        const V product = load<V>(a + i) * load<V>(b + i);
        if constexpr (sizeof(V) == sizeof(Vector)) sums += product;
        else total += product;
    });
    float lanes[LANES];
    store(lanes, sums);
    for (float lane : lanes) total += lane;
    return total;
}

// y of `count` images of one group
template <Activation kind, typename T>
static void forward_images(const Head& head, const T* x, std::int64_t count, std::int64_t group, const Owed& owed,
                           const float* weight, const float* bias, float* y) {
    double sums[IMAGES][MOST_OUTPUTS] = {};
    float room[WIDTH];
    const Panels panels = panels_of(head);
    for (std::int64_t task = 0; task < panels.count(); ++task) {
        Panel panel = panels[task];
        panel.group = group;
        const Coefficients by(owed, panel, head.x.channels);
        for (std::int64_t n = 0; n < count; ++n) {
            for (std::int64_t l = 0; l < panel.lines(); ++l) {
                const std::int64_t at = panel.at(l), length = panel.length(l);
                const float* line = fetched<kind>(x + n * head.size() + at, length, by, owed, room);
                for (std::int64_t o = 0; o < head.outputs; ++o)
                    sums[n][o] += dot(line, weight + o * head.size() + at, length);
            }
        }
    }
    for (std::int64_t n = 0; n < count; ++n)
        for (std::int64_t o = 0; o < head.outputs; ++o)
            y[n * head.outputs + o] = static_cast<float>(sums[n][o] + (bias == nullptr ? 0.0f : bias[o]));
}

void head_forward(const Head& head, const void* x, const Owed& owed, const float* weight, const float* bias, float* y,
                  std::int64_t queue) {
    const std::int64_t each = head.group_images(), blocks = ceiling(each, IMAGES);
    with_type(head.x.dtype, [&](auto type) {
        using T = decltype(type);
        with_activation(owed.activation, [&](auto kind) {
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < head.x.groups * blocks; ++task) {
                const std::int64_t group = task / blocks, begin = task % blocks * IMAGES, first = group * each + begin;
                forward_images<decltype(kind)::value>(
                    head, static_cast<const T*>(x) + first * head.size(), least(IMAGES, each - begin), group, owed,
                    weight, bias, y + first * head.outputs);
            }
        });
    });
}

void head_dgrad(const Head& head, const float* g, const float* weight, void* ga, std::int64_t queue) {
    with_type(head.x.dtype, [&](auto type) {
        using T = decltype(type);
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t n = 0; n < head.images(); ++n) {
            float room[WIDTH];
            for (std::int64_t k = 0; k < head.size(); k += WIDTH) {
                const std::int64_t length = least(WIDTH, head.size() - k);
                T* to = static_cast<T*>(ga) + n * head.size() + k;
                float* results = place(to, room);
                for (std::int64_t i = 0; i < length; ++i) results[i] = g[n * head.outputs] * weight[k + i];
                for (std::int64_t o = 1; o < head.outputs; ++o)
                    for (std::int64_t i = 0; i < length; ++i)
                        results[i] += g[n * head.outputs + o] * weight[o * head.size() + k + i];
                settle(results, length, to);
            }
        }
    });
}

// Adds to total [outputs, WIDTH] what `count` images of one group, x and g, have for a line.
template <Activation kind, typename T>
static void wgrad_images(const Head& head, const T* x, std::int64_t count, std::int64_t length, const Coefficients& by,
                         const Owed& owed, const float* g, float (*total)[WIDTH]) {
    float sums[MOST_OUTPUTS][WIDTH] = {}, room[WIDTH];
    for (std::int64_t n = 0; n < count; ++n) {
        const float* line = fetched<kind>(x + n * head.size(), length, by, owed, room);
        for (std::int64_t o = 0; o < head.outputs; ++o)
            for (std::int64_t i = 0; i < length; ++i) sums[o][i] += g[n * head.outputs + o] * line[i];
    }
    for (std::int64_t o = 0; o < head.outputs; ++o)
        for (std::int64_t i = 0; i < length; ++i) total[o][i] += sums[o][i];
}

// The gradient of line `l` of the weights
template <Activation kind, typename T>
static void wgrad_line(const Head& head, const T* x, Panel panel, std::int64_t l, const Owed& owed, const float* g,
                       float* gweight) {
    const std::int64_t at = panel.at(l), length = panel.length(l), each = head.group_images();
    float total[MOST_OUTPUTS][WIDTH] = {};
    for (panel.group = 0; panel.group < head.x.groups; ++panel.group) {
        const Coefficients by(owed, panel, head.x.channels);
        for (std::int64_t begin = 0; begin < each; begin += IMAGES) {
            const std::int64_t first = panel.group * each + begin;
            wgrad_images<kind>(head, x + first * head.size() + at, least(IMAGES, each - begin), length, by, owed,
                               g + first * head.outputs, total);
        }
    }
    for (std::int64_t o = 0; o < head.outputs; ++o)
        for (std::int64_t i = 0; i < length; ++i) gweight[o * head.size() + at + i] = total[o][i];
}

void head_wgrad(const Head& head, const void* x, const Owed& owed, const float* g, float* gweight,
                std::int64_t queue) {
    const Panels panels = panels_of(head);
    const std::int64_t lines = panels[0].lines();
    with_type(head.x.dtype, [&](auto type) {
        using T = decltype(type);
        with_activation(owed.activation, [&](auto kind) {
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < panels.count() * lines; ++task)
                wgrad_line<decltype(kind)::value>(head, static_cast<const T*>(x), panels[task % panels.count()],
                                                  task / panels.count(), owed, g, gweight);
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
