// Convolutions between a fine image of few channels and a coarse one, as products of patches that stay in the cache.
//
// With A the coarse image [pixels, C], P the patches of the fine one [pixels, K], K = kh * kw * channels, and W [C, K]:
//
//     to coarse    A = P W^T + bias
//     to fine      F = bias + the sum of what patches A W have for each pixel
//     wgrad        W = A^T P
//
// for a few lines of coarse pixels at a time. K is some fifty numbers: as matrices in memory, P and A W would be read
// and written for nothing.
#include <cstring>

#include "gemm.h"
#include "panel.h"
#include "scratch.h"

namespace fastgan::FASTGAN_ISA {

constexpr std::int64_t PIXELS = 96;  // about so many at a time
constexpr std::int64_t PARTS = 16;   // sums of wgrad, added in order: by the sizes alone, results repeat

// What all passes know of their sizes.
struct Sizes {
    const Images& fine;
    const Window& window;
    std::int64_t coarse, depth, row, width, lines;

    Sizes(const Images& fine, const Window& window, std::int64_t coarse)
        : fine(fine), window(window), coarse(coarse), depth(window.kernel_h * window.kernel_w * fine.channels),
          row(panels_of(depth) * TILE_COLUMNS), width(window.width), lines(most(1, PIXELS / window.width)) {}

    // elements of a line that has all pixels of a row of patches
    std::int64_t length() const { return ((width - 1) * window.stride_w + window.kernel_w) * fine.channels; }
    std::int64_t pixels() const { return lines * width; }
    std::int64_t line_size() const { return window.kernel_h * length() + LANES; }
    std::int64_t patch_size() const { return pixels() * row + LANES; }

    // coarse line `line` of an image
    const float* pixel(const float* coarse_image, std::int64_t image, std::int64_t line) const {
        return coarse_image + (image * window.height + line) * width * coarse;
    }
};

// to [panels of columns, rows, TILE_COLUMNS], of element (i, j) at from[i * row + j * step]; zero beyond the columns
static void pack(const float* from, std::int64_t rows, std::int64_t columns, std::int64_t row, std::int64_t step,
                 float* to) {
    for (std::int64_t panel = 0; panel < panels_of(columns); ++panel) {
        for (std::int64_t i = 0; i < rows; ++i, to += TILE_COLUMNS) {
            for (std::int64_t j = 0; j < TILE_COLUMNS; ++j) {
                const std::int64_t column = panel * TILE_COLUMNS + j;
                to[j] = column < columns ? from[i * row + column * step] : 0.0f;
            }
        }
    }
}

// The kernel_h lines of an image from `top` on, between zeros for the padding
static void copy_lines(const Sizes& s, const float* image, std::int64_t top, float* lines) {
    const std::int64_t channels = s.fine.channels, length = s.length(), left = least(s.window.pad_w * channels, length);
    const std::int64_t inside = least(s.fine.width * channels, length - left);
    for (std::int64_t y = top; y < top + s.window.kernel_h; ++y, lines += length) {
        std::memset(lines, 0, length * sizeof(float));
        if (y >= 0 && y < s.fine.height)
            std::memcpy(lines + left, image + y * s.fine.width * channels, inside * sizeof(float));
    }
}

// patches [count * width, row] of coarse lines [first, first + count); `lines` is room for those of the fine image that
// one of them needs. What is copied beyond a run is overwritten by the next, or lies beyond the depth.
static void load_patches(const Sizes& s, const float* x, std::int64_t image, std::int64_t first, std::int64_t count,
                         float* lines, float* patches) {
    const std::int64_t run = s.window.kernel_w * s.fine.channels, step = s.window.stride_w * s.fine.channels;
    const float* from = x + image * s.fine.height * s.fine.width * s.fine.channels;
    for (std::int64_t i = first; i < first + count; ++i) {
        copy_lines(s, from, i * s.window.stride_h - s.window.pad_h, lines);
        for (std::int64_t j = 0; j < s.width; ++j, patches += s.row)
            for (std::int64_t a = 0; a < s.window.kernel_h; ++a)
                for (std::int64_t k = 0; k < run; k += LANES)
                    store(patches + a * run + k, load<Vector>(lines + a * s.length() + j * step + k));
    }
}

void patches_to_coarse(const Images& fine, const float* x, const Window& window, const float* weight, const float* bias,
                       std::int64_t coarse, float* out, std::int64_t queue) {
    const Sizes s(fine, window, coarse);
    const std::int64_t columns = panels_of(coarse) * TILE_COLUMNS, tasks = ceiling(window.height, s.lines);
    const Rooms<float> b_room(1, columns * s.depth), line_room(queue, s.line_size()), patch_room(queue, s.patch_size());
    const Rooms<float> product_room(queue, s.pixels() * columns);
    pack(weight, s.depth, coarse, 1, s.depth, b_room.first);
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t task = 0; task < fine.count * tasks; ++task) {
        const std::int64_t image = task / tasks, first = task % tasks * s.lines;
        const std::int64_t count = least(s.lines, window.height - first);
        float* to = out + (image * window.height + first) * s.width * coarse;
        float* products = columns == coarse ? to : product_room.mine();
        load_patches(s, x, image, first, count, line_room.mine(), patch_room.mine());
        gemm(count * s.width, coarse, s.depth, {patch_room.mine(), s.row, 1},
             {b_room.first, s.depth * TILE_COLUMNS, TILE_COLUMNS}, products, columns);
        if (products == to && bias == nullptr) continue;
        for (std::int64_t j = 0; j < count * s.width; ++j)
            for (std::int64_t c = 0; c < coarse; ++c)
                to[j * coarse + c] = products[j * columns + c] + (bias == nullptr ? 0.0f : bias[c]);
    }
}

// image [H, W, channels] += what the patches [width, row] of coarse line i have for its pixels
static void add_patches(const Sizes& s, std::int64_t i, const float* patches, float* image) {
    const Window& window = s.window;
    const std::int64_t channels = s.fine.channels, run = window.kernel_w * channels;
    for (std::int64_t a = 0; a < window.kernel_h; ++a) {
        const std::int64_t y = i * window.stride_h - window.pad_h + a;
        if (y < 0 || y >= s.fine.height) continue;
        for (std::int64_t j = 0; j < s.width; ++j) {
            const std::int64_t x = j * window.stride_w - window.pad_w;
            const std::int64_t first = most(0, -x) * channels, last = least(run, (s.fine.width - x) * channels);
            const float* from = patches + j * s.row + a * run;
            float* to = image + (y * s.fine.width + x) * channels;
            for (std::int64_t k = first; k < last; ++k) to[k] += from[k];
        }
    }
}

void patches_to_fine(const Images& fine, const float* x, const Window& window, const float* weight, const float* bias,
                     std::int64_t coarse, float* out, std::int64_t queue) {
    const Sizes s(fine, window, coarse);
    const std::int64_t size = fine.height * fine.width * fine.channels;
    const Rooms<float> b_room(1, s.row * coarse), product_room(queue, s.pixels() * s.row);
    pack(weight, coarse, s.depth, s.depth, 1, b_room.first);
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t image = 0; image < fine.count; ++image) {
        float* to = out + image * size;
        for (std::int64_t k = 0; k < size; ++k) to[k] = bias == nullptr ? 0.0f : bias[k % fine.channels];
        for (std::int64_t first = 0; first < window.height; first += s.lines) {
            const std::int64_t count = least(s.lines, window.height - first);
            gemm(count * s.width, s.depth, coarse, {s.pixel(x, image, first), coarse, 1},
                 {b_room.first, coarse * TILE_COLUMNS, TILE_COLUMNS}, product_room.mine(), s.row);
            for (std::int64_t i = 0; i < count; ++i)
                add_patches(s, first + i, product_room.mine() + i * s.width * s.row, to);
        }
    }
}

void patches_wgrad(const Images& fine, const float* x, const float* coarse_image, const Window& window,
                   std::int64_t coarse, float* gradient, std::int64_t queue) {
    const Sizes s(fine, window, coarse);
    const std::int64_t each = most(1, ceiling(fine.count, PARTS)), parts = ceiling(fine.count, each);
    const Rooms<float> sum_room(1, parts * coarse * s.row);
    const Rooms<float> line_room(queue, s.line_size()), patch_room(queue, s.patch_size());
#pragma omp parallel for num_threads(queue) schedule(dynamic)
    for (std::int64_t part = 0; part < parts; ++part) {
        float *sums = sum_room.first + part * coarse * s.row, *patches = patch_room.mine();
        for (std::int64_t image = part * each; image < least((part + 1) * each, fine.count); ++image) {
            for (std::int64_t first = 0; first < window.height; first += s.lines) {
                const std::int64_t count = least(s.lines, window.height - first);
                load_patches(s, x, image, first, count, line_room.mine(), patches);
                gemm(coarse, s.depth, count * s.width, {s.pixel(coarse_image, image, first), 1, coarse},
                     {patches, TILE_COLUMNS, s.row}, sums, s.row, image > part * each || first > 0);
            }
        }
    }
    for (std::int64_t c = 0; c < coarse; ++c) {
        for (std::int64_t k = 0; k < s.depth; ++k) {
            float sum = 0.0f;
            for (std::int64_t part = 0; part < parts; ++part) sum += sum_room.first[(part * coarse + c) * s.row + k];
            gradient[c * s.depth + k] = sum;
        }
    }
}

}  // namespace fastgan::FASTGAN_ISA
