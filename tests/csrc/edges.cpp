// The CPU kernels on edge sizes, under sanitizers: exact allocations, so that a read or write beyond one is seen.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

using namespace fastgan;

static std::size_t width_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// `count` elements, each 0x3c3c...: a number near 0.0115 or 1.06 in every type
static std::vector<unsigned char> elements(std::int64_t count, DType dtype) {
    return std::vector<unsigned char>(static_cast<std::size_t>(count) * width_of(dtype), 0x3c);
}

static void finite(const std::vector<float>& values, const char* what) {
    for (float value : values) {
        if (std::isfinite(value)) continue;
        std::fprintf(stderr, "%s is not finite\n", what);
        std::exit(1);
    }
}

static void rows(const RowKernels& kernels, const Shape& shape, Activation activation, std::int64_t threads) {
    const std::int64_t groups = shape.groups, channels = shape.channels;
    const std::int64_t parts = kernels.parts(shape.group_rows(), channels), size = groups * channels;
    const auto y = elements(shape.size(), shape.dtype), ga = y;
    auto out = y;
    std::vector<float> partials(3 * size * parts), stats(2 * size), sums(2 * size), vector(channels, 0.5f);
    std::vector<float> mean(channels, 1.0f), var(channels, 1.0f);
    std::int64_t num_batches_tracked = 0;
    kernels.measure(shape, y.data(), parts, partials.data(), threads);
    kernels.finish_statistics(partials.data(), channels, groups, parts, 1e-5f,
                              {mean.data(), var.data(), &num_batches_tracked, -1.0f}, stats.data(), threads);
    finite(stats, "statistics");
    finite(var, "running_var");
    const Normalization normalization{stats.data(), vector.data(), vector.data(), activation, 0.2f};
    kernels.bn_act_forward(shape, y.data(), normalization, out.data(), threads);
    kernels.bn_act_forward(shape, out.data(), {nullptr, nullptr, nullptr, activation, 0.2f}, out.data(), threads);
    kernels.act_backward(shape, ga.data(), y.data(), activation, 0.2f, out.data(), threads);
    kernels.bn_backward_sums(shape, ga.data(), y.data(), normalization, 1, nullptr, sums.data(), threads);
    finite(sums, "sums");
    kernels.bn_backward_apply(shape, ga.data(), y.data(), normalization, sums.data(), 0.5f, out.data(), threads);
    kernels.bn_backward_apply(shape, out.data(), y.data(), normalization, nullptr, 0.5f, out.data(), threads);
}

static void loss(const RowKernels& kernels, std::int64_t count, std::int64_t groups, DType dtype) {
    const auto logits = elements(count, dtype);
    std::vector<float> targets(groups, 0.9f), losses(groups), probabilities(groups), gradient(count);
    kernels.logistic({count, 1, groups, dtype}, logits.data(), targets.data(), losses.data(), probabilities.data(),
                     gradient.data(), 1);
    finite(losses, "loss");
    finite(gradient, "gradient of the loss");
}

static void patches(const Kernels& kernels, const Images& fine, const Window& window, std::int64_t threads) {
    const std::int64_t pixels = fine.count * fine.height * fine.width;
    const std::int64_t coarse = fine.count * window.height * window.width;
    const auto x = elements(pixels * fine.channels, fine.dtype);
    auto gathered = elements(coarse * window.kernel_h * window.kernel_w * fine.channels, fine.dtype), out = x;
    const std::vector<float> bias(fine.channels, 1.0f);
    kernels.gather(fine, x.data(), window, 0, fine.count, gathered.data(), threads);
    kernels.scatter(fine, gathered.data(), bias.data(), window, out.data(), threads);
}

static void winograd(const Kernels& kernels, const Polyphase& p, int tile, std::int64_t threads) {
    std::vector<float> fine(p.images * p.fine_h * p.fine_w * p.fine, 0.5f), bias(p.fine + p.coarse, 1.0f);
    std::vector<float> coarse(p.images * p.coarse_h * p.coarse_w * p.coarse, 0.5f);
    std::vector<float> weight(p.coarse * 16 * p.fine, 0.5f), gradient(weight.size(), NAN);
    kernels.winograd_wgrad(p, tile, fine.data(), coarse.data(), gradient.data(), threads);
    finite(gradient, "gradient of the weight");
    const std::vector<float> from_fine = fine, from_coarse = coarse;
    for (float& value : fine) value = NAN;
    for (float& value : coarse) value = NAN;
    kernels.winograd_gather(p, tile, from_fine.data(), weight.data(), bias.data(), coarse.data(), threads);
    kernels.winograd_scatter(p, tile, from_coarse.data(), weight.data(), bias.data(), fine.data(), threads);
    finite(coarse, "coarse");
    finite(fine, "fine");
}

static void patches(const Kernels& kernels, const Images& fine, const Window& window, std::int64_t coarse,
                    std::int64_t threads) {
    const std::int64_t depth = window.kernel_h * window.kernel_w * fine.channels;
    std::vector<float> x(fine.count * fine.height * fine.width * fine.channels, 0.5f), bias(coarse + 8, 1.0f);
    std::vector<float> y(fine.count * window.height * window.width * coarse, 0.5f);
    std::vector<float> weight(coarse * depth, 0.5f), gradient(weight.size(), NAN);
    kernels.patches_wgrad(fine, x.data(), y.data(), window, coarse, gradient.data(), threads);
    finite(gradient, "gradient of the weight");
    const std::vector<float> from_fine = x, from_coarse = y;
    for (float& value : x) value = NAN;
    for (float& value : y) value = NAN;
    kernels.patches_to_coarse(fine, from_fine.data(), window, weight.data(), bias.data(), coarse, y.data(), threads);
    kernels.patches_to_fine(fine, from_coarse.data(), window, weight.data(), bias.data(), coarse, x.data(), threads);
    finite(y, "coarse");
    finite(x, "fine");
}

int main() {
    const Kernels& kernels = FASTGAN_ISA::kernels;
    for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        for (std::int64_t channels : {1, 3, 25, 64, 100, 255, 256, 257, 513})
            for (std::int64_t rows_of_all : {0, 2, 6, 34, 258, 1026})
                for (std::int64_t groups : {1, 2})
                    rows(kernels.rows, {rows_of_all, channels, groups, dtype}, Activation(channels % 4),
                         1 + groups % 2);
        for (std::int64_t count : {2, 14, 256, 514}) loss(kernels.rows, count, 2, dtype);
        for (std::int64_t channels : {1, 3, 64, 300}) {
            for (std::int64_t count : {0, 1, 3}) {
                const Images fine{count, 7, 5, channels, dtype};
                patches(kernels, fine, {4, 4, 2, 2, 1, 1, 3, 2}, 2);
                patches(kernels, fine, {2, 3, 4, 1, 0, 0, 2, 3}, 1);
                patches(kernels, fine, {7, 7, 1, 1, 6, 6, 13, 11}, 2);
                patches(kernels, fine, {1, 1, 3, 3, 2, 9, 3, 4}, 1);
            }
        }
    }
    for (int tile : {2, 4}) {
        winograd(kernels, {3, 7, 6, 5, 3, 3, 37, 1, 1}, tile, 2);
        winograd(kernels, {1, 4, 4, 64, 1, 1, 1, 0, 0}, tile, 1);
        winograd(kernels, {5, 9, 21, 1, 5, 11, 33, 2, 2}, tile, 2);
        winograd(kernels, {70, 6, 4, 17, 2, 1, 16, 0, 0}, tile, 3);
        winograd(kernels, {2, 4, 5, 330, 2, 2, 360, 1, 1}, tile, 2);  // a weight that is taken panel by panel
    }
    patches(kernels, {5, 8, 8, 3, DType::float32}, {4, 4, 2, 2, 1, 1, 4, 4}, 64, 2);
    patches(kernels, {3, 7, 5, 1, DType::float32}, {3, 2, 1, 3, 2, 0, 9, 2}, 33, 3);
    patches(kernels, {18, 3, 130, 8, DType::float32}, {1, 7, 2, 1, 0, 3, 2, 130}, 5, 2);
    std::puts(kernels.isa);
}
