// Convolutions as products of patches that stay in the cache, for fine images of few channels.
//
// With the coarse image A [pixels, C], patches P of the fine image F [pixels, K], K = kh * kw * channels, and W [C, K]:
//
//     to_coarse    A = P W^T + bias
//     to_fine      F = bias + the sum of the patches A W that cover each pixel
//     wgrad        W = A^T P
//
// for a few rows of coarse pixels at a time. K is about fifty, so P and A W are larger than the images, and writing and
// reading them as whole matrices would take most of the time.
#include "convolution.h"

#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "scratch.h"

namespace fastgan {

constexpr std::int64_t PIXELS = 96;  // approximate number of coarse pixels at a time
constexpr std::int64_t PARTS = 16;   // of wgrad, summed in order; independent of threads, so that results repeat

struct Patches {
    const Convolution& conv;
    std::int64_t depth, stride, rows;  // K; distance of patches; coarse rows at a time

    explicit Patches(const Convolution& conv)
        : conv(conv), depth(conv.kernel_h * conv.kernel_w * conv.fine), stride(panels_of(depth) * NR),
          rows(std::max<std::int64_t>(1, PIXELS / conv.coarse_w)) {}

    // Elements of a fine row that covers a row of patches
    std::int64_t row_length() const { return ((conv.coarse_w - 1) * conv.stride_w + conv.kernel_w) * conv.fine; }
    std::int64_t rows_size() const { return conv.kernel_h * row_length() + VECTOR; }
    std::int64_t size() const { return rows * conv.coarse_w * stride + VECTOR; }
    std::int64_t fine_size() const { return conv.fine_h * conv.fine_w * conv.fine; }

    const float* coarse_row(const float* coarse, std::int64_t image, std::int64_t row) const {
        return coarse + (image * conv.coarse_h + row) * conv.coarse_w * conv.coarse;
    }

    // Copies the kernel_h rows of a fine image from `top` on, with zeros for the padding
    void copy_rows(const float* image, std::int64_t top, float* to) const {
        const std::int64_t length = row_length(), left = std::min(conv.pad_w * conv.fine, length);
        const std::int64_t inside = std::min(conv.fine_w * conv.fine, length - left);
        for (std::int64_t y = top; y < top + conv.kernel_h; ++y, to += length) {
            std::memset(to, 0, length * sizeof(float));
            if (y >= 0 && y < conv.fine_h)
                std::memcpy(to + left, image + y * conv.fine_w * conv.fine, inside * sizeof(float));
        }
    }

    // Writes patches [count * coarse_w, stride] of coarse rows [first, first + count). `fine_rows` is memory for the
    // fine rows of one coarse row. Elements that are copied beyond a row of a patch are overwritten by the next row, or
    // are beyond the depth.
    void gather(const float* fine, std::int64_t image, std::int64_t first, std::int64_t count, float* fine_rows,
                float* patches) const {
        const std::int64_t length = conv.kernel_w * conv.fine, step = conv.stride_w * conv.fine;
        for (std::int64_t i = first; i < first + count; ++i) {
            copy_rows(fine + image * fine_size(), i * conv.stride_h - conv.pad_h, fine_rows);
            for (std::int64_t j = 0; j < conv.coarse_w; ++j, patches += stride)
                for (std::int64_t a = 0; a < conv.kernel_h; ++a)
                    for (std::int64_t k = 0; k < length; k += VECTOR)
                        store(patches + a * length + k, load<Vector>(fine_rows + a * row_length() + j * step + k));
        }
    }

    // Adds the patches [coarse_w, stride] of coarse row i to the pixels of image [H, W, fine] that they cover
    void scatter_add(std::int64_t i, const float* patches, float* image) const {
        const std::int64_t length = conv.kernel_w * conv.fine;
        for (std::int64_t a = 0; a < conv.kernel_h; ++a) {
            const std::int64_t y = i * conv.stride_h - conv.pad_h + a;
            if (y < 0 || y >= conv.fine_h) continue;
            for (std::int64_t j = 0; j < conv.coarse_w; ++j) {
                const std::int64_t x = j * conv.stride_w - conv.pad_w;
                const std::int64_t first = std::max<std::int64_t>(0, -x) * conv.fine;
                const std::int64_t last = std::min(length, (conv.fine_w - x) * conv.fine);
                const float* from = patches + j * stride + a * length;
                float* to = image + (y * conv.fine_w + x) * conv.fine;
                for (std::int64_t k = first; k < last; ++k) to[k] += from[k];
            }
        }
    }
};

// Packs the matrix with element (i, j) at from[i * row + j * step] into to [panels of columns, rows, NR]; zero beyond
// the columns
static void pack(const float* from, std::int64_t rows, std::int64_t columns, std::int64_t row, std::int64_t step,
                 float* to) {
    for (std::int64_t panel = 0; panel < panels_of(columns); ++panel) {
        for (std::int64_t i = 0; i < rows; ++i, to += NR) {
            for (std::int64_t j = 0; j < NR; ++j) {
                const std::int64_t column = panel * NR + j;
                to[j] = column < columns ? from[i * row + column * step] : 0.0f;
            }
        }
    }
}

void patches_to_coarse(const Convolution& conv, const float* fine, const float* weight, const float* bias,
                       float* coarse, std::int64_t threads) {
    const Patches p(conv);
    const std::int64_t columns = panels_of(conv.coarse) * NR, tasks = ceil_div(conv.coarse_h, p.rows);
    const ScratchPool<float> weight_pool(1, columns * p.depth), row_pool(threads, p.rows_size());
    const ScratchPool<float> patch_pool(threads, p.size()), product_pool(threads, p.rows * conv.coarse_w * columns);
    pack(weight, p.depth, conv.coarse, 1, p.depth, weight_pool.data);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t task = 0; task < conv.images * tasks; ++task) {
        const std::int64_t image = task / tasks, first = task % tasks * p.rows;
        const std::int64_t count = std::min(p.rows, conv.coarse_h - first), pixels = count * conv.coarse_w;
        float* to = coarse + (image * conv.coarse_h + first) * conv.coarse_w * conv.coarse;
        float* patches = patch_pool.of_this_thread();
        float* products = columns == conv.coarse ? to : product_pool.of_this_thread();
        p.gather(fine, image, first, count, row_pool.of_this_thread(), patches);
        gemm(pixels, conv.coarse, p.depth, {patches, p.stride, 1}, {weight_pool.data, p.depth * NR, NR}, products,
             columns);
        if (products == to && bias == nullptr) continue;
        for (std::int64_t j = 0; j < pixels; ++j)
            for (std::int64_t c = 0; c < conv.coarse; ++c)
                to[j * conv.coarse + c] = products[j * columns + c] + (bias == nullptr ? 0.0f : bias[c]);
    }
}

void patches_to_fine(const Convolution& conv, const float* coarse, const float* weight, const float* bias, float* fine,
                     std::int64_t threads) {
    const Patches p(conv);
    const ScratchPool<float> weight_pool(1, p.stride * conv.coarse), patch_pool(threads, p.size());
    pack(weight, conv.coarse, p.depth, p.depth, 1, weight_pool.data);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t image = 0; image < conv.images; ++image) {
        float *to = fine + image * p.fine_size(), *patches = patch_pool.of_this_thread();
        for (std::int64_t k = 0; k < p.fine_size(); ++k) to[k] = bias == nullptr ? 0.0f : bias[k % conv.fine];
        for (std::int64_t first = 0; first < conv.coarse_h; first += p.rows) {
            const std::int64_t count = std::min(p.rows, conv.coarse_h - first);
            gemm(count * conv.coarse_w, p.depth, conv.coarse, {p.coarse_row(coarse, image, first), conv.coarse, 1},
                 {weight_pool.data, conv.coarse * NR, NR}, patches, p.stride);
            for (std::int64_t i = 0; i < count; ++i)
                p.scatter_add(first + i, patches + i * conv.coarse_w * p.stride, to);
        }
    }
}

void patches_wgrad(const Convolution& conv, const float* fine, const float* coarse, float* gradient,
                   std::int64_t threads) {
    const Patches p(conv);
    const std::int64_t each = std::max<std::int64_t>(1, ceil_div(conv.images, PARTS));
    const std::int64_t parts = ceil_div(conv.images, each), size = conv.coarse * p.stride;
    const ScratchPool<float> sum_pool(1, parts * size);
    const ScratchPool<float> row_pool(threads, p.rows_size()), patch_pool(threads, p.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (std::int64_t part = 0; part < parts; ++part) {
        float *sums = sum_pool.data + part * size, *patches = patch_pool.of_this_thread();
        for (std::int64_t image = part * each; image < std::min((part + 1) * each, conv.images); ++image) {
            for (std::int64_t first = 0; first < conv.coarse_h; first += p.rows) {
                const std::int64_t count = std::min(p.rows, conv.coarse_h - first);
                p.gather(fine, image, first, count, row_pool.of_this_thread(), patches);
                gemm(conv.coarse, p.depth, count * conv.coarse_w, {p.coarse_row(coarse, image, first), 1, conv.coarse},
                     {patches, NR, p.stride}, sums, p.stride, image > part * each || first > 0);
            }
        }
    }
    for (std::int64_t c = 0; c < conv.coarse; ++c) {
        for (std::int64_t k = 0; k < p.depth; ++k) {
            float sum = 0.0f;
            for (std::int64_t part = 0; part < parts; ++part) sum += sum_pool.data[part * size + c * p.stride + k];
            gradient[c * p.depth + k] = sum;
        }
    }
}

}  // namespace fastgan
