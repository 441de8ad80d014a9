// The CPU kernels on edge sizes, under sanitizers. Allocations are exact, so that a read or write beyond one is
// detected.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "convolution.h"
#include "fastgan/kernels.h"

using namespace fastgan;

// `count` elements, each 0x3c3c...: a number near 0.0115 or 1.06 in every type
static std::vector<unsigned char> elements(std::int64_t count, DType dtype) {
    return std::vector<unsigned char>(static_cast<std::size_t>(count) * size_of(dtype), 0x3c);
}

static void finite(const std::vector<float>& values, const char* what) {
    for (float value : values) {
        if (std::isfinite(value)) continue;
        std::fprintf(stderr, "%s is not finite\n", what);
        std::exit(1);
    }
}

static void normalization(const Shape& shape, Activation activation, std::int64_t threads) {
    const std::int64_t channels = shape.channels, size = shape.groups * channels;
    const auto y = elements(shape.rows * channels, shape.dtype), ga = y;
    auto out = y;
    std::vector<float> stats(2 * size), sums(2 * size), totals(2 * channels);
    std::vector<float> vector(channels, 0.5f), mean(channels, 1.0f), var = mean;
    std::int64_t num_batches_tracked = 0;
    batch_stats(shape, y.data(), 1e-5f, {mean.data(), var.data(), &num_batches_tracked, -1.0f}, {0, nullptr, nullptr},
                stats.data(), threads);
    finite(stats, "statistics");
    finite(var, "running_var");
    const Normalization normalization{stats.data(), vector.data(), vector.data(), activation, 0.2f};
    bn_act_forward(shape, y.data(), normalization, out.data(), threads);
    bn_backward_sums(shape, ga.data(), y.data(), normalization, {0, nullptr, nullptr}, sums.data(),
                     totals.data(), threads);
    finite(sums, "sums");
    finite(totals, "totals");
    bn_backward_apply(shape, ga.data(), y.data(), normalization, sums.data(), 0.5f, out.data(), threads);
    bn_backward_apply(shape, out.data(), y.data(), normalization, nullptr, 0.5f, out.data(), threads);
}

static void convolution(const Convolution& conv, std::int64_t threads) {
    std::vector<float> fine(conv.images * conv.fine_h * conv.fine_w * conv.fine, 0.5f);
    std::vector<float> bias(conv.fine + conv.coarse, 1.0f);
    std::vector<float> coarse(conv.images * conv.coarse_h * conv.coarse_w * conv.coarse, 0.5f);
    std::vector<float> weight(conv.coarse * conv.kernel_h * conv.kernel_w * conv.fine, 0.5f);
    std::vector<float> gradient(weight.size(), NAN);
    (conv.tile == 0 ? patches_wgrad : winograd_wgrad)(conv, fine.data(), coarse.data(), gradient.data(), threads);
    finite(gradient, "gradient of the weight");
    const std::vector<float> from_fine = fine, from_coarse = coarse;
    for (float& value : fine) value = NAN;
    for (float& value : coarse) value = NAN;
    (conv.tile == 0 ? patches_to_coarse : winograd_to_coarse)(conv, from_fine.data(), weight.data(), bias.data(),
                                                              coarse.data(), threads);
    (conv.tile == 0 ? patches_to_fine : winograd_to_fine)(conv, from_coarse.data(), weight.data(), bias.data(),
                                                          fine.data(), threads);
    finite(coarse, "coarse");
    finite(fine, "fine");
}

int main() {
    for (DType dtype : {DType::float32, DType::bfloat16, DType::float16})
        for (std::int64_t channels : {1, 3, 25, 64, 100, 255, 256, 257, 513})
            for (std::int64_t rows : {0, 2, 6, 34, 258, 1026})
                for (std::int64_t groups : {1, 2})
                    normalization({rows, channels, groups, dtype}, Activation(channels % 4), 1 + groups % 2);
    for (int tile : {2, 4}) {
        convolution({3, 7, 6, 5, 3, 3, 37, 4, 4, 2, 2, 1, 1, tile}, 2);
        convolution({1, 4, 4, 64, 1, 1, 1, 4, 4, 2, 2, 0, 0, tile}, 1);
        convolution({5, 9, 21, 1, 5, 11, 33, 4, 4, 2, 2, 2, 2, tile}, 2);
        convolution({70, 6, 4, 17, 2, 1, 16, 4, 4, 2, 2, 0, 0, tile}, 3);
        convolution({2, 4, 5, 330, 2, 2, 360, 4, 4, 2, 2, 1, 1, tile}, 2);  // a weight that is transformed by panels
    }
    convolution({5, 8, 8, 3, 4, 4, 64, 4, 4, 2, 2, 1, 1, 0}, 2);
    convolution({3, 7, 5, 1, 9, 2, 33, 3, 2, 1, 3, 2, 0, 0}, 3);
    convolution({18, 3, 130, 8, 2, 130, 5, 1, 7, 2, 1, 0, 3, 0}, 2);
    std::puts("done");
}
