// The three passes of a 4x4 convolution of stride 2, and of a transposed one, between a fine and a coarse image:
//
//     gather    coarse from fine: a convolution, or the gradient of a transposed one's input
//     scatter   fine from coarse: a transposed convolution, or the gradient of a convolution's input
//     wgrad     the weight's gradient from both
//
// Tiles go through transform, GEMMs and transform in blocks that stay in the cache; what is owed to an image is done
// when it is loaded. A row of tiles is a band; images follow one another, so all their bands are one sequence.
#include "winograd.h"

#include "gemm.h"
#include "panel.h"
#include "threads.h"

namespace fastgan::FASTGAN_ISA {

static inline std::int64_t panels_of(std::int64_t columns) { return ceiling(columns, TILE_COLUMNS); }

// The length of a row in memory: whole panels, and not a multiple of a page, or rows would share a set of the cache.
static inline std::int64_t row_of(std::int64_t columns) { return panels_of(columns) * TILE_COLUMNS + 16; }

// Tiles in a block: their products stay in the cache, and so many of them share a pass over the transformed weight that
// it does not matter where that lies.
static inline std::int64_t block_of(std::int64_t weight_size) { return weight_size < (1 << 21) ? 96 : 192; }

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

// Loads a pixel and does what is owed to it.
template <Activation kind, bool normalises>
struct Fetch {
    const float *mean, *rstd, *gamma, *beta;
    float slope;

    Fetch(const Owed& owed, std::int64_t channels, std::int64_t group) : slope(owed.slope) {
        if (!normalises) return;
        mean = owed.statistics + (owed.statistic_groups > 1 ? group * channels : 0);
        rstd = mean + owed.statistic_groups * channels;
        gamma = owed.gamma + (owed.gamma_groups > 1 ? group * channels : 0);
        beta = owed.beta + (owed.gamma_groups > 1 ? group * channels : 0);
    }

    template <typename V>
    V operator()(const float* pixel, std::int64_t c) const {
        V z = load<V>(pixel + c);
        if constexpr (normalises)
            z = load<V>(gamma + c) * ((z - load<V>(mean + c)) * load<V>(rstd + c)) + load<V>(beta + c);
        if constexpr (kind == Activation::relu) return z <= 0.0f ? V{} : z;
        if constexpr (kind == Activation::leaky_relu) return z > 0.0f ? z : z * slope;
        return z;
    }
};

// body(fetch) with the Fetch of a group; tanh is not among them
template <typename Body>
static void with_fetch(const Owed& owed, std::int64_t channels, std::int64_t group, Body body) {
    const bool normalises = owed.statistics != nullptr;
    if (owed.activation == Activation::relu) {
        if (normalises) body(Fetch<Activation::relu, true>(owed, channels, group));
        else body(Fetch<Activation::relu, false>(owed, channels, group));
    } else if (owed.activation == Activation::leaky_relu) {
        if (normalises) body(Fetch<Activation::leaky_relu, true>(owed, channels, group));
        else body(Fetch<Activation::leaky_relu, false>(owed, channels, group));
    } else {
        if (normalises) body(Fetch<Activation::none, true>(owed, channels, group));
        else body(Fetch<Activation::none, false>(owed, channels, group));
    }
}

static inline std::int64_t group_of(const Owed& owed, std::int64_t image, std::int64_t images) {
    const std::int64_t groups = owed.statistic_groups > owed.gamma_groups ? owed.statistic_groups : owed.gamma_groups;
    return owed.statistics == nullptr ? 0 : image / (images / groups);
}

// Where the pixels of a tile lie, null outside the image: (M + 1)^2 fine ones of each phase.
template <int M>
struct FinePixels {
    std::int64_t at[4][(M + 1) * (M + 1)];  // element, or -1

    FinePixels(const Polyphase& p, const Place& place) {
        for (int phase = 0; phase < 4; ++phase) {
            for (int i = 0; i <= M; ++i) {
                for (int j = 0; j <= M; ++j) {
                    const std::int64_t y = 2 * (place.y + i) + phase / 2 - p.pad_h;
                    const std::int64_t x = 2 * (place.x + j) + phase % 2 - p.pad_w;
                    const bool inside = y >= 0 && y < p.fine_h && x >= 0 && x < p.fine_w;
                    at[phase][i * (M + 1) + j] =
                        inside ? ((place.image * p.fine_h + y) * p.fine_w + x) * p.fine : -1;
                }
            }
        }
    }
};

// A tile's fine pixels, transformed: point k of a phase and channel c to v[k * step + phase * fine + c]
template <int M, typename F>
static void fine_tile(const Polyphase& p, const float* fine, const Place& place, const F& fetch, float* v,
                      std::int64_t step) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const FinePixels<M> pixels(p, place);
    over_channels(p.fine, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        for (int phase = 0; phase < 4; ++phase) {
            V d[POINTS], u[POINTS];
            for (int k = 0; k < POINTS; ++k) {
                const std::int64_t at = pixels.at[phase][k];
                d[k] = at < 0 ? V{} : fetch.template operator()<V>(fine + at, c);
            }
            fine_transform<M>(d, u);
            for (int k = 0; k < POINTS; ++k) store(v + k * step + phase * p.fine + c, u[k]);
        }
    });
}

template <int M, typename F>
static void coarse_tile(const Polyphase& p, const float* coarse, const Place& at, const F& fetch, float* to,
                        std::int64_t step) {
    const float* image = coarse + at.image * p.coarse_h * p.coarse_w * p.coarse;
    over_channels(p.coarse, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        V y[M * M], d[(M + 1) * (M + 1)];
        for (int i = 0; i < M; ++i) {
            for (int j = 0; j < M; ++j) {
                const bool inside = at.y + i < p.coarse_h && at.x + j < p.coarse_w;
                const float* pixel = image + ((at.y + i) * p.coarse_w + at.x + j) * p.coarse;
                y[i * M + j] = inside ? fetch.template operator()<V>(pixel, c) : V{};
            }
        }
        coarse_transform<M>(y, d);
        for (int k = 0; k < (M + 1) * (M + 1); ++k) store(to + k * step + c, d[k]);
    });
}

// The coarse pixels of a tile from its products m[k * step + c].
template <int M>
static void coarse_out(const Polyphase& p, const float* m, std::int64_t step, const float* bias, const Place& at,
                       float* coarse) {
    float* image = coarse + at.image * p.coarse_h * p.coarse_w * p.coarse;
    over_channels(p.coarse, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        V products[(M + 1) * (M + 1)], y[M * M];
        for (int k = 0; k < (M + 1) * (M + 1); ++k) products[k] = load<V>(m + k * step + c);
        coarse_adjoint<M>(products, y);
        const V more = bias == nullptr ? V{} : load<V>(bias + c);
        for (int i = 0; i < M && at.y + i < p.coarse_h; ++i)
            for (int j = 0; j < M && at.x + j < p.coarse_w; ++j)
                store(image + ((at.y + i) * p.coarse_w + at.x + j) * p.coarse + c, y[i * M + j] + more);
    });
}

// The fine pixels of a tile from its products. A first row or column that the tile before has made already is added to.
template <int M>
static void fine_out(const Polyphase& p, const float* m, std::int64_t step, const float* bias, const Place& place,
                     float* fine) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const FinePixels<M> pixels(p, place);
    over_channels(p.fine, [&](auto lanes, std::int64_t c) {
        using V = decltype(lanes);
        const V more = bias == nullptr ? V{} : load<V>(bias + c);
        for (int phase = 0; phase < 4; ++phase) {
            V products[POINTS], d[POINTS];
            for (int k = 0; k < POINTS; ++k) products[k] = load<V>(m + k * step + phase * p.fine + c);
            fine_adjoint<M>(products, d);
            for (int k = 0; k < POINTS; ++k) {
                const std::int64_t at = pixels.at[phase][k];
                if (at < 0) continue;
                const bool is_shared = (k <= M && place.y > 0) || (k % (M + 1) == 0 && place.x > 0);
                store(fine + at + c, d[k] + (is_shared ? load<V>(fine + at + c) : more));
            }
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

// The taps of a phase of a weight [coarse, 4, 4, fine], transformed.
template <int M, typename V>
static inline void transformed_taps(const Polyphase& p, const float* weight, std::int64_t coarse, int phase,
                                    std::int64_t c, V* u) {
    V g[4];
    for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b)
            g[2 * a + b] = load<V>(weight + ((coarse * 4 + 2 * a + phase / 2) * 4 + 2 * b + phase % 2) * p.fine + c);
    weight_transform<M>(g, u);
}

static std::int64_t gather_weight_size(const Polyphase& p, int tile) {
    return (tile + 1) * (tile + 1) * 4 * p.fine * panels_of(p.coarse) * TILE_COLUMNS;
}

static std::int64_t scatter_weight_size(const Polyphase& p, int tile) {
    return (tile + 1) * (tile + 1) * p.coarse * panels_of(4 * p.fine) * TILE_COLUMNS;
}

// For gather: [POINTS, panels of coarse, 4 fine, TILE_COLUMNS]
template <int M>
static void gather_weight(const Polyphase& p, const float* weight, float* out, std::int64_t queue) {
    constexpr int POINTS = Tiles<M>::POINTS;
    const std::int64_t panels = panels_of(p.coarse), depth = 4 * p.fine;
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t task = 0; task < panels * 4; ++task) {
        const std::int64_t panel = task / 4, phase = task % 4;
        over_channels(p.fine, [&](auto lanes, std::int64_t c) {
            using V = decltype(lanes);
            constexpr int count = sizeof(V) / sizeof(float);
            float turned[POINTS][TILE_COLUMNS][count] = {};  // a vector lies along `fine`, a panel's row along `coarse`
            for (std::int64_t i = 0; i < least(TILE_COLUMNS, p.coarse - panel * TILE_COLUMNS); ++i) {
                V u[POINTS];
                transformed_taps<M>(p, weight, panel * TILE_COLUMNS + i, static_cast<int>(phase), c, u);
                for (int k = 0; k < POINTS; ++k) store(turned[k][i], u[k]);
            }
            for (int k = 0; k < POINTS; ++k) {
                float* to = out + ((k * panels + panel) * depth + phase * p.fine + c) * TILE_COLUMNS;
                for (int lane = 0; lane < count; ++lane)
                    for (int i = 0; i < TILE_COLUMNS; ++i) to[lane * TILE_COLUMNS + i] = turned[k][i][lane];
            }
        });
    }
}

// For scatter: [POINTS, panels of 4 fine, coarse, TILE_COLUMNS]
template <int M>
static void scatter_weight(const Polyphase& p, const float* weight, float* out, std::int64_t queue) {
    constexpr int POINTS = Tiles<M>::POINTS;
    const std::int64_t panels = panels_of(4 * p.fine);
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t coarse = 0; coarse < p.coarse; ++coarse) {
        const auto transform = [&](auto lanes, int phase, std::int64_t c) {
            using V = decltype(lanes);
            V u[POINTS];
            transformed_taps<M>(p, weight, coarse, phase, c, u);
            const std::int64_t panel = (phase * p.fine + c) / TILE_COLUMNS, at = (phase * p.fine + c) % TILE_COLUMNS;
            for (int k = 0; k < POINTS; ++k)
                store(out + ((k * panels + panel) * p.coarse + coarse) * TILE_COLUMNS + at, u[k]);
        };
        for (int phase = 0; phase < 4; ++phase) {
            if (p.fine % LANES == 0) {
                over_channels(p.fine, [&](auto lanes, std::int64_t c) { transform(lanes, phase, c); });
            } else {  // a vector might lie across two panels
                for (std::int64_t c = 0; c < p.fine; ++c) transform(float{}, phase, c);
            }
        }
    }
}

template <int M>
static void gather_tiles(const Polyphase& p, const float* fine, const Owed& owed, const float* weight, const float* bias,
                   float* coarse, std::int64_t queue) {
    const Tiles<M> tiles(p);
    const std::int64_t bands = tiles.bands_in_block(block_of(gather_weight_size(p, M)), queue);
    const std::int64_t count = bands * tiles.across, depth = 4 * p.fine;
    const std::int64_t panels = panels_of(p.coarse), v_row = row_of(depth), m_row = row_of(p.coarse);
    const Rooms<float> v_room(queue, tiles.POINTS * count * v_row), m_room(queue, tiles.POINTS * count * m_row);
    const std::int64_t blocks = ceiling(tiles.bands(), bands);
#pragma omp parallel for num_threads(queue) schedule(dynamic)
    for (std::int64_t block = 0; block < blocks; ++block) {
        float *v = v_room.mine(), *m = m_room.mine();
        const std::int64_t from = block * bands, to = least(from + bands, tiles.bands());
        over_tiles(tiles, from, to, [&](const Place& at, std::int64_t number) {
            with_fetch(owed, p.fine, group_of(owed, at.image, p.images), [&](const auto& fetch) {
                fine_tile<M>(p, fine, at, fetch, v + number * v_row, count * v_row);
            });
        });
        for (int k = 0; k < tiles.POINTS; ++k)
            wide_gemm((to - from) * tiles.across, p.coarse, depth, {v + k * count * v_row, v_row, 1},
                 {weight + k * panels * depth * TILE_COLUMNS, depth * TILE_COLUMNS, TILE_COLUMNS},
                 m + k * count * m_row, m_row);
        over_tiles(tiles, from, to, [&](const Place& at, std::int64_t number) {
            coarse_out<M>(p, m + number * m_row, count * m_row, bias, at, coarse);
        });
    }
}

// A block is of whole images, as neighbouring tiles add to one another's pixels.
template <int M>
static void scatter_tiles(const Polyphase& p, const float* coarse, const Owed& owed, const float* weight, const float* bias,
                    float* fine, std::int64_t queue) {
    const Tiles<M> tiles(p);
    const std::int64_t bands = tiles.bands_in_block(block_of(scatter_weight_size(p, M)), queue);
    const std::int64_t images = ceiling(bands, tiles.down);
    const std::int64_t count = images * tiles.down * tiles.across, columns = 4 * p.fine, panels = panels_of(columns);
    const std::int64_t d_row = row_of(p.coarse), m_row = row_of(columns);
    const Rooms<float> d_room(queue, tiles.POINTS * count * d_row), m_room(queue, tiles.POINTS * count * m_row);
    const std::int64_t blocks = ceiling(p.images, images);
#pragma omp parallel for num_threads(queue) schedule(dynamic)
    for (std::int64_t block = 0; block < blocks; ++block) {
        float *d = d_room.mine(), *m = m_room.mine();
        const std::int64_t first = block * images, last = least(first + images, p.images);
        const std::int64_t from = first * tiles.down, to = last * tiles.down;
        over_tiles(tiles, from, to, [&](const Place& at, std::int64_t number) {
            with_fetch(owed, p.coarse, group_of(owed, at.image, p.images), [&](const auto& fetch) {
                coarse_tile<M>(p, coarse, at, fetch, d + number * d_row, count * d_row);
            });
        });
        for (int k = 0; k < tiles.POINTS; ++k)
            wide_gemm((to - from) * tiles.across, columns, p.coarse, {d + k * count * d_row, d_row, 1},
                 {weight + k * panels * p.coarse * TILE_COLUMNS, p.coarse * TILE_COLUMNS, TILE_COLUMNS},
                 m + k * count * m_row, m_row);
        for (std::int64_t image = first; image < last; ++image) fill_rest(tiles, image, bias, fine);
        over_tiles(tiles, from, to, [&](const Place& at, std::int64_t number) {
            fine_out<M>(p, m + number * m_row, count * m_row, bias, at, fine);
        });
    }
}

// The weight's gradient [coarse, 4, 4, fine] from its products [POINTS, coarse, row]
template <int M>
static void weight_out(const Polyphase& p, const float* products, std::int64_t row, float* gradient,
                       std::int64_t queue) {
    constexpr int POINTS = Tiles<M>::POINTS;
#pragma omp parallel for num_threads(queue) schedule(static)
    for (std::int64_t coarse = 0; coarse < p.coarse; ++coarse) {
        for (int phase = 0; phase < 4; ++phase) {
            over_channels(p.fine, [&](auto lanes, std::int64_t c) {
                using V = decltype(lanes);
                V u[POINTS], g[4];
                for (int k = 0; k < POINTS; ++k)
                    u[k] = load<V>(products + (k * p.coarse + coarse) * row + phase * p.fine + c);
                weight_adjoint<M>(u, g);
                for (int a = 0; a < 2; ++a)
                    for (int b = 0; b < 2; ++b)
                        store(gradient + ((coarse * 4 + 2 * a + phase / 2) * 4 + 2 * b + phase % 2) * p.fine + c,
                              g[2 * a + b]);
            });
        }
    }
}

constexpr std::int64_t WGRAD_COLUMNS = 4 * TILE_COLUMNS;  // a task's

template <int M>
static void wgrad_tiles(const Polyphase& p, const float* fine, const Owed& fine_owed, const float* coarse,
                  const Owed& coarse_owed, float* gradient, std::int64_t queue) {
    const Tiles<M> tiles(p);
    const std::int64_t bands = tiles.bands_in_block(384, 1), count = bands * tiles.across, columns = 4 * p.fine;
    const std::int64_t v_row = row_of(columns), d_row = row_of(p.coarse);
    const Rooms<float> v_room(1, tiles.POINTS * count * v_row), d_room(1, tiles.POINTS * count * d_row);
    const Rooms<float> product_room(1, tiles.POINTS * p.coarse * v_row);
    float *v = v_room.first, *d = d_room.first, *products = product_room.first;
    for (std::int64_t from = 0; from < tiles.bands(); from += bands) {
        const std::int64_t to = least(from + bands, tiles.bands());
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t band = from; band < to; ++band) {
            const std::int64_t before = (band - from) * tiles.across;
            over_tiles(tiles, band, band + 1, [&](const Place& at, std::int64_t number) {
                with_fetch(fine_owed, p.fine, group_of(fine_owed, at.image, p.images), [&](const auto& fetch) {
                    fine_tile<M>(p, fine, at, fetch, v + (before + number) * v_row, count * v_row);
                });
                with_fetch(coarse_owed, p.coarse, group_of(coarse_owed, at.image, p.images), [&](const auto& fetch) {
                    coarse_tile<M>(p, coarse, at, fetch, d + (before + number) * d_row, count * d_row);
                });
            });
        }
        const std::int64_t chunks = ceiling(columns, WGRAD_COLUMNS);
#pragma omp parallel for num_threads(queue) schedule(dynamic)
        for (std::int64_t task = 0; task < tiles.POINTS * chunks; ++task) {
            const std::int64_t k = task / chunks, column = task % chunks * WGRAD_COLUMNS;
            gemm(p.coarse, least(WGRAD_COLUMNS, columns - column), (to - from) * tiles.across,
                 {d + k * count * d_row, 1, d_row}, {v + k * count * v_row + column, TILE_COLUMNS, v_row},
                 products + k * p.coarse * v_row + column, v_row, from > 0);
        }
    }
    weight_out<M>(p, products, v_row, gradient, queue);
}

template <int M>
struct Tile {
    static constexpr int value = M;
};

// body(Tile<M>{}) for the size of a tile
template <typename Body>
static inline void with_tile(int tile, Body body) {
    if (tile == 2) body(Tile<2>{});
    else body(Tile<4>{});
}

void winograd_gather(const Polyphase& p, int tile, const float* fine, const Owed& owed, const float* weight,
                     const float* bias, float* coarse, std::int64_t queue) {
    const Rooms<float> transformed(1, gather_weight_size(p, tile));
    with_tile(tile, [&](auto size) {
        gather_weight<decltype(size)::value>(p, weight, transformed.first, queue);
        gather_tiles<decltype(size)::value>(p, fine, owed, transformed.first, bias, coarse, queue);
    });
}

void winograd_scatter(const Polyphase& p, int tile, const float* coarse, const Owed& owed, const float* weight,
                      const float* bias, float* fine, std::int64_t queue) {
    const Rooms<float> transformed(1, scatter_weight_size(p, tile));
    with_tile(tile, [&](auto size) {
        scatter_weight<decltype(size)::value>(p, weight, transformed.first, queue);
        scatter_tiles<decltype(size)::value>(p, coarse, owed, transformed.first, bias, fine, queue);
    });
}

void winograd_wgrad(const Polyphase& p, int tile, const float* fine, const Owed& fine_owed, const float* coarse,
                    const Owed& coarse_owed, float* gradient, std::int64_t queue) {
    with_tile(tile, [&](auto size) {
        wgrad_tiles<decltype(size)::value>(p, fine, fine_owed, coarse, coarse_owed, gradient, queue);
    });
}

}  // namespace fastgan::FASTGAN_ISA
