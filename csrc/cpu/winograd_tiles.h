// The tiles of a fine and a coarse image: loading with transformation, and storing from products.
//
// Tiles are numbered over all images, by rows of tiles.
#pragma once

#include <algorithm>
#include <cstring>

#include "convolution.h"
#include "gemm.h"
#include "winograd.h"

namespace fastgan {

// Tiles of M x M coarse pixels over all images.
template <int M>
struct Tiles {
    static constexpr int POINTS = (M + 1) * (M + 1);
    const Convolution& conv;
    std::int64_t columns, rows;  // of tiles, in an image

    explicit Tiles(const Convolution& conv)
        : conv(conv), columns(ceil_div(conv.coarse_w, M)), rows(ceil_div(conv.coarse_h, M)) {}

    std::int64_t all_rows() const { return conv.images * rows; }

    // Rows of tiles per block of at most about `size` tiles; the number of blocks is a multiple of the threads.
    std::int64_t rows_in_block(std::int64_t size, std::int64_t threads) const {
        const std::int64_t blocks = ceil_div(ceil_div(all_rows() * columns, size), threads) * threads;
        return ceil_div(all_rows(), blocks);
    }
};

// The image of a tile, and its first coarse row and column.
struct TilePosition {
    std::int64_t image, y, x;
};

// body(position, number) for the tiles of rows [first, last), counted from 0
template <int M, typename Body>
static inline void for_each_tile(const Tiles<M>& tiles, std::int64_t first, std::int64_t last, Body body) {
    for (std::int64_t row = first, number = 0; row < last; ++row)
        for (std::int64_t i = 0; i < tiles.columns; ++i, ++number)
            body(TilePosition{row / tiles.rows, row % tiles.rows * M, i * M}, number);
}

// Transformed tiles or their products, [POINTS, columns / width, tiles, width].
struct TransformedTiles {
    float* data;
    std::int64_t point;         // distance of points
    std::int64_t group, width;  // distance of groups of columns, and columns per group
    std::int64_t row;           // distance of tiles

    // The address of point 0
    float* at(std::int64_t tile, std::int64_t column) const {
        return data + column / width * group + tile * row + column % width;
    }
};

// Calls body(V{}, c, points), which computes the POINTS of a vector of channels, and writes them to columns from
// `first` on. CHUNK vectors of one point are written at a time, because each point is in a different page.
template <int POINTS, typename Body>
static inline void store_points(std::int64_t channels, const TransformedTiles& to, std::int64_t tile,
                                std::int64_t first, Body body) {
    constexpr int CHUNK = 4;
    Vector points[CHUNK][POINTS];
    std::int64_t c = 0;
    for (; c + CHUNK * VECTOR <= channels; c += CHUNK * VECTOR) {
        for (int i = 0; i < CHUNK; ++i) body(Vector{}, c + i * VECTOR, points[i]);
        float* out = to.at(tile, first + c);
        for (int k = 0; k < POINTS; ++k)
            for (int i = 0; i < CHUNK; ++i) store(out + k * to.point + i * VECTOR, points[i][k]);
    }
    for_each_vector(channels - c, [&](auto vector, std::int64_t more) {
        decltype(vector) rest[POINTS];
        body(vector, c + more, rest);
        float* out = to.at(tile, first + c + more);
        for (int k = 0; k < POINTS; ++k) store(out + k * to.point, rest[k]);
    });
}

// The rows of a fine image that a row of tiles reads, [2 M + 2, width, fine], zero outside. Tiles overlap; with this
// copy memory is read once and in order.
template <int M>
struct FineRows {
    static constexpr int HEIGHT = 2 * M + 2;
    const Convolution& conv;
    std::int64_t width;

    explicit FineRows(const Tiles<M>& tiles) : conv(tiles.conv), width(2 * (tiles.columns * M + 1)) {}

    std::int64_t size() const { return HEIGHT * width * conv.fine; }

    // Copies the rows for the row of tiles whose first coarse row is y
    void copy(const float* image, std::int64_t y, float* to) const {
        const std::int64_t begin = std::min(conv.pad_w, width);
        const std::int64_t end = std::max(begin, std::min(conv.pad_w + conv.fine_w, width));
        for (int i = 0; i < HEIGHT; ++i, to += width * conv.fine) {
            const std::int64_t row = 2 * y + i - conv.pad_h;
            const bool inside = row >= 0 && row < conv.fine_h;
            clear(to, inside ? begin : width);
            if (!inside) continue;
            std::memcpy(to + begin * conv.fine, image + (row * conv.fine_w - conv.pad_w + begin) * conv.fine,
                        (end - begin) * conv.fine * sizeof(float));
            clear(to + end * conv.fine, width - end);
        }
    }

    void clear(float* pixel, std::int64_t count) const { std::memset(pixel, 0, count * conv.fine * sizeof(float)); }
};

// Transforms tile number `number`, whose first column is x; channel c of a phase is column phase * phase_columns + c.
template <int M>
static void load_fine_tile(const FineRows<M>& rows, const float* data, std::int64_t x, const TransformedTiles& v,
                           std::int64_t number, std::int64_t phase_columns) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t channels = rows.conv.fine;
    for (int phase = 0; phase < 4; ++phase) {
        const float* first = data + (phase / 2 * rows.width + 2 * x + phase % 2) * channels;
        store_points<POINTS>(channels, v, number, phase * phase_columns, [&](auto vector, std::int64_t c, auto* u) {
            using V = decltype(vector);
            V d[POINTS];
            for (int i = 0; i <= M; ++i)
                for (int j = 0; j <= M; ++j)
                    d[i * (M + 1) + j] = load<V>(first + 2 * (i * rows.width + j) * channels + c);
            fine_transform<M>(d, u);
        });
    }
}

// Transforms tile number `number`, at position `at`; a channel is a column. Pixels outside the image are zero.
template <int M>
static void load_coarse_tile(const Convolution& conv, const float* coarse, const TilePosition& at,
                             const TransformedTiles& d, std::int64_t number) {
    const float* image = coarse + at.image * conv.coarse_h * conv.coarse_w * conv.coarse;
    store_points<(M + 1) * (M + 1)>(conv.coarse, d, number, 0, [&](auto vector, std::int64_t c, auto* points) {
        using V = decltype(vector);
        V y[M * M];
        for (int i = 0; i < M; ++i) {
            for (int j = 0; j < M; ++j) {
                const bool inside = at.y + i < conv.coarse_h && at.x + j < conv.coarse_w;
                const float* pixel = image + ((at.y + i) * conv.coarse_w + at.x + j) * conv.coarse;
                y[i * M + j] = inside ? load<V>(pixel + c) : V{};
            }
        }
        coarse_transform<M>(y, points);
    });
}

// Stores channels [first, first + count) of the coarse pixels of a tile, from its products m[k * point + c].
template <int M>
static void store_coarse_tile(const Convolution& conv, const float* m, std::int64_t point, const float* bias,
                              const TilePosition& at, std::int64_t first, std::int64_t count, float* coarse) {
    float* image = coarse + at.image * conv.coarse_h * conv.coarse_w * conv.coarse + first;
    for_each_vector(count, [&](auto vector, std::int64_t c) {
        using V = decltype(vector);
        V products[(M + 1) * (M + 1)], y[M * M];
        for (int k = 0; k < (M + 1) * (M + 1); ++k) products[k] = load<V>(m + k * point + c);
        coarse_adjoint<M>(products, y);
        const V shift = bias == nullptr ? V{} : load<V>(bias + first + c);
        for (int i = 0; i < M && at.y + i < conv.coarse_h; ++i)
            for (int j = 0; j < M && at.x + j < conv.coarse_w; ++j)
                store(image + ((at.y + i) * conv.coarse_w + at.x + j) * conv.coarse + c, y[i * M + j] + shift);
    });
}

// Stores one phase of the (M + 1)^2 fine pixels of a tile. The first row and column are added to those that previous
// tiles have stored.
template <int M>
static void store_fine_tile(const Convolution& conv, const float* m, std::int64_t point, const float* bias,
                            const TilePosition& at, int phase, std::int64_t first, std::int64_t count, float* fine) {
    constexpr int POINTS = (M + 1) * (M + 1);
    float* image = fine + at.image * conv.fine_h * conv.fine_w * conv.fine + first;
    const std::int64_t top = 2 * at.y + phase / 2 - conv.pad_h, left = 2 * at.x + phase % 2 - conv.pad_w;
    for_each_vector(count, [&](auto vector, std::int64_t c) {
        using V = decltype(vector);
        const V shift = bias == nullptr ? V{} : load<V>(bias + first + c);
        V products[POINTS], d[POINTS];
        for (int k = 0; k < POINTS; ++k) products[k] = load<V>(m + k * point + c);
        fine_adjoint<M>(products, d);
        for (int k = 0; k < POINTS; ++k) {
            const int i = k / (M + 1), j = k % (M + 1);
            const std::int64_t y = top + 2 * i, x = left + 2 * j;
            if (y < 0 || y >= conv.fine_h || x < 0 || x >= conv.fine_w) continue;
            float* pixel = image + (y * conv.fine_w + x) * conv.fine + c;
            const bool is_shared = (i == 0 && at.y > 0) || (j == 0 && at.x > 0);
            store(pixel, d[k] + (is_shared ? load<V>(pixel) : shift));
        }
    });
}

// Stores the bias in rows and columns at the end of an image that no tile covers.
template <int M>
static void fill_rest(const Tiles<M>& tiles, std::int64_t image, const float* bias, float* fine) {
    const Convolution& conv = tiles.conv;
    const std::int64_t h = 2 * (tiles.rows * M + 1) - conv.pad_h, w = 2 * (tiles.columns * M + 1) - conv.pad_w;
    for (std::int64_t y = 0; y < conv.fine_h; ++y) {
        for (std::int64_t x = y < h ? w : 0; x < conv.fine_w; ++x) {
            float* pixel = fine + ((image * conv.fine_h + y) * conv.fine_w + x) * conv.fine;
            for (std::int64_t c = 0; c < conv.fine; ++c) pixel[c] = bias == nullptr ? 0.0f : bias[c];
        }
    }
}

}  // namespace fastgan
