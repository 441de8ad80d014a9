// The tiles of a fine and a coarse image: loaded and transformed, or made of their products.
//
// Tiles are numbered over all images; a row of them is a band, and as images follow one another, so do bands.
#pragma once

#include <cstring>

#include "panel.h"
#include "winograd.h"

namespace fastgan::FASTGAN_ISA {

// Tiles of M x M coarse pixels over all images.
template <int M>
struct Tiles {
    static constexpr int POINTS = (M + 1) * (M + 1);
    const Polyphase& p;
    std::int64_t across, down;

    explicit Tiles(const Polyphase& p)
        : p(p), across(ceiling(p.coarse_w, M)), down(ceiling(p.coarse_h, M)) {}

    std::int64_t bands() const { return p.images * down; }

    // Of about `size` tiles, as many blocks as keep all threads busy.
    std::int64_t bands_in_block(std::int64_t size, std::int64_t threads) const {
        const std::int64_t blocks = ceiling(ceiling(bands() * across, size), threads) * threads;
        return ceiling(bands(), blocks);
    }
};

// What a tile is: its image, and its first coarse row and column.
struct Place {
    std::int64_t image, y, x;
};

// body(place, number) for the tiles of bands [from, to)
template <int M, typename Body>
static inline void over_tiles(const Tiles<M>& tiles, std::int64_t from, std::int64_t to, Body body) {
    for (std::int64_t band = from, number = 0; band < to; ++band)
        for (std::int64_t i = 0; i < tiles.across; ++i, ++number)
            body(Place{band / tiles.down, band % tiles.down * M, i * M}, number);
}

// Transformed tiles or their products, [POINTS, slabs, tiles, width]: the columns of a tile lie in slabs of `width`.
struct Transformed {
    float* data;
    std::int64_t step;         // from a point to the next
    std::int64_t slab, width;  // from a slab to the next, and its columns
    std::int64_t row;          // from a tile to the next

    // of point 0
    float* at(std::int64_t tile, std::int64_t column) const {
        return data + column / width * slab + tile * row + column % width;
    }
};

// Where the pixels of a phase of a tile lie, (M + 1)^2 fine ones: element, or -1 outside the image.
template <int M>
struct FinePixels {
    std::int64_t at[(M + 1) * (M + 1)];

    FinePixels(const Polyphase& p, const Place& place, int phase) {
        for (int i = 0; i <= M; ++i) {
            for (int j = 0; j <= M; ++j) {
                const std::int64_t y = 2 * (place.y + i) + phase / 2 - p.pad_h;
                const std::int64_t x = 2 * (place.x + j) + phase % 2 - p.pad_w;
                const bool inside = y >= 0 && y < p.fine_h && x >= 0 && x < p.fine_w;
                at[i * (M + 1) + j] = inside ? ((place.image * p.fine_h + y) * p.fine_w + x) * p.fine : -1;
            }
        }
    }
};

// body(V{}, c, points) for vectors of channels makes their POINTS; they are written to columns from `first` on, CHUNK
// vectors of a point at a time, as each point lies in a page of its own.
template <int POINTS, typename Body>
static inline void in_chunks(std::int64_t channels, const Transformed& to, std::int64_t tile, std::int64_t first,
                             Body body) {
    constexpr int CHUNK = 4;
    Vector points[CHUNK][POINTS];
    std::int64_t c = 0;
    for (; c + CHUNK * LANES <= channels; c += CHUNK * LANES) {
        for (int i = 0; i < CHUNK; ++i) body(Vector{}, c + i * LANES, points[i]);
        float* out = to.at(tile, first + c);
        for (int k = 0; k < POINTS; ++k)
            for (int i = 0; i < CHUNK; ++i) store(out + k * to.step + i * LANES, points[i][k]);
    }
    over_channels(channels - c, [&](auto lanes, std::int64_t more) {
        decltype(lanes) rest[POINTS];
        body(lanes, c + more, rest);
        float* out = to.at(tile, first + c + more);
        for (int k = 0; k < POINTS; ++k) store(out + k * to.step, rest[k]);
    });
}

// The pixels that a band of tiles sees of a fine image, [2 M + 2, width, fine]; zero outside. Tiles overlap: memory is
// read once, and in order.
template <int M>
struct Lines {
    static constexpr int HEIGHT = 2 * M + 2;
    const Polyphase& p;
    std::int64_t width;

    explicit Lines(const Tiles<M>& tiles) : p(tiles.p), width(2 * (tiles.across * M + 1)) {}

    std::int64_t size() const { return HEIGHT * width * p.fine; }

    // of the band whose first coarse row is y
    void fetch(const float* image, std::int64_t y, float* lines) const {
        const std::int64_t begin = least(p.pad_w, width), end = most(begin, least(p.pad_w + p.fine_w, width));
        for (int i = 0; i < HEIGHT; ++i, lines += width * p.fine) {
            const std::int64_t row = 2 * y + i - p.pad_h;
            const bool inside = row >= 0 && row < p.fine_h;
            clear(lines, inside ? begin : width);
            if (!inside) continue;
            std::memcpy(lines + begin * p.fine, image + (row * p.fine_w - p.pad_w + begin) * p.fine,
                        (end - begin) * p.fine * sizeof(float));
            clear(lines + end * p.fine, width - end);
        }
    }

    void clear(float* pixel, std::int64_t count) const { std::memset(pixel, 0, count * p.fine * sizeof(float)); }
};

// A tile of a band's lines, transformed: channel c of a phase is column phase * pitch + c.
template <int M>
static void fine_tile(const Lines<M>& lines, const float* band, std::int64_t x, const Transformed& v,
                      std::int64_t number, std::int64_t pitch) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t channels = lines.p.fine;
    for (int phase = 0; phase < 4; ++phase) {
        const float* first = band + (phase / 2 * lines.width + 2 * x + phase % 2) * channels;
        in_chunks<POINTS>(channels, v, number, phase * pitch, [&](auto lanes, std::int64_t c, auto* u) {
            using V = decltype(lanes);
            V d[POINTS];
            for (int i = 0; i <= M; ++i)
                for (int j = 0; j <= M; ++j)
                    d[i * (M + 1) + j] = load<V>(first + 2 * (i * lines.width + j) * channels + c);
            fine_transform<M>(d, u);
        });
    }
}

template <int M>
static void coarse_tile(const Polyphase& p, const float* coarse, const Place& at, const Transformed& d,
                        std::int64_t number) {
    const float* image = coarse + at.image * p.coarse_h * p.coarse_w * p.coarse;
    in_chunks<(M + 1) * (M + 1)>(p.coarse, d, number, 0, [&](auto lanes, std::int64_t c, auto* points) {
        using V = decltype(lanes);
        V y[M * M];
        for (int i = 0; i < M; ++i) {
            for (int j = 0; j < M; ++j) {
                const bool inside = at.y + i < p.coarse_h && at.x + j < p.coarse_w;
                const float* pixel = image + ((at.y + i) * p.coarse_w + at.x + j) * p.coarse;
                y[i * M + j] = inside ? load<V>(pixel + c) : V{};
            }
        }
        coarse_transform<M>(y, points);
    });
}

// `columns` channels, from c0 on, of the coarse pixels of a tile, from its products m[k * step + c].
template <int M>
static void coarse_out(const Polyphase& p, const float* m, std::int64_t step, const float* bias, const Place& at,
                       std::int64_t c0, std::int64_t columns, float* coarse) {
    float* image = coarse + at.image * p.coarse_h * p.coarse_w * p.coarse + c0;
    over_channels(columns, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        V products[(M + 1) * (M + 1)], y[M * M];
        for (int k = 0; k < (M + 1) * (M + 1); ++k) products[k] = load<V>(m + k * step + c);
        coarse_adjoint<M>(products, y);
        const V more = bias == nullptr ? V{} : load<V>(bias + c0 + c);
        for (int i = 0; i < M && at.y + i < p.coarse_h; ++i)
            for (int j = 0; j < M && at.x + j < p.coarse_w; ++j)
                store(image + ((at.y + i) * p.coarse_w + at.x + j) * p.coarse + c, y[i * M + j] + more);
    });
}

// The same of a phase of its fine pixels. A first row or column that the tile before has made already is added to.
template <int M>
static void fine_out(const Polyphase& p, const float* m, std::int64_t step, const float* bias, const Place& place,
                     int phase, std::int64_t c0, std::int64_t columns, float* fine) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const FinePixels<M> pixels(p, place, phase);
    over_channels(columns, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        const V more = bias == nullptr ? V{} : load<V>(bias + c0 + c);
        V products[POINTS], d[POINTS];
        for (int k = 0; k < POINTS; ++k) products[k] = load<V>(m + k * step + c);
        fine_adjoint<M>(products, d);
        for (int k = 0; k < POINTS; ++k) {
            if (pixels.at[k] < 0) continue;
            float* pixel = fine + pixels.at[k] + c0 + c;
            const bool is_shared = (k <= M && place.y > 0) || (k % (M + 1) == 0 && place.x > 0);
            store(pixel, d[k] + (is_shared ? load<V>(pixel) : more));
        }
    });
}

// Rows and columns at the end of an image that no tile reaches: the bias.
template <int M>
static void fill_rest(const Tiles<M>& tiles, std::int64_t image, const float* bias, float* fine) {
    const Polyphase& p = tiles.p;
    const std::int64_t h = 2 * (tiles.down * M + 1) - p.pad_h, w = 2 * (tiles.across * M + 1) - p.pad_w;
    for (std::int64_t y = 0; y < p.fine_h; ++y) {
        for (std::int64_t x = y < h ? w : 0; x < p.fine_w; ++x) {
            float* pixel = fine + ((image * p.fine_h + y) * p.fine_w + x) * p.fine;
            for (std::int64_t c = 0; c < p.fine; ++c) pixel[c] = bias == nullptr ? 0.0f : bias[c];
        }
    }
}

}  // namespace fastgan::FASTGAN_ISA
