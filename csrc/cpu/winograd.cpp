// The three passes of a 4x4 convolution of stride 2, and of a transposed one, between a fine and a coarse image:
//
//     gather    coarse from fine: a convolution, or the gradient of a transposed one's input
//     scatter   fine from coarse: a transposed convolution, or the gradient of a convolution's input
//     wgrad     the weight's gradient from both
//
// Tiles are transformed, multiplied and transformed back without leaving the cache. Which of the factors of a product
// stays there is a matter of size: where images are large, a thread takes a block of tiles through the whole weight,
// which all threads share (`by_tiles`); where the transformed weight would not fit, a thread transforms a panel of it
// and takes it through all tiles (`by_panels`).
#include "winograd.h"

#include "scratch.h"
#include "winograd_tiles.h"
#include "winograd_weight.h"

namespace fastgan::FASTGAN_ISA {

constexpr std::int64_t SHARED = 1 << 22;  // elements that the last-level cache keeps for all threads

// The length of a row in memory: whole panels, and not a multiple of a page, or rows would share a set of the cache.
static inline std::int64_t row_of(std::int64_t columns) { return panels_of(columns) * TILE_COLUMNS + 16; }

static inline Transformed in_rows(float* data, std::int64_t tiles, std::int64_t columns) {
    return {data, step_of(tiles * row_of(columns)), 0, columns, row_of(columns)};
}

template <int M>
static void load_fine(const Tiles<M>& tiles, std::int64_t from, std::int64_t to, const float* fine,
                      std::int64_t number, std::int64_t pitch, float* band, const Transformed& v) {
    const Polyphase& p = tiles.p;
    const Lines<M> lines(tiles);
    over_tiles(tiles, from, to, [&](const Place& at, std::int64_t i) {
        if (at.x == 0) lines.fetch(fine + at.image * p.fine_h * p.fine_w * p.fine, at.y, band);
        fine_tile<M>(lines, band, at.x, v, number + i, pitch);
    });
}

template <int M>
static void load_coarse(const Tiles<M>& tiles, std::int64_t from, std::int64_t to, const float* coarse,
                        std::int64_t number, const Transformed& d) {
    over_tiles(tiles, from, to,
               [&](const Place& at, std::int64_t i) { coarse_tile<M>(tiles.p, coarse, at, d, number + i); });
}

// What a pass from one image to the other is given.
struct Given {
    const Polyphase& p;
    const float *from, *weight, *bias;
    float* to;
};

// Bands of the fine image become rows of `depth` columns, their products those of the coarse one, in `panels`.
template <int M>
struct ToCoarse {
    static constexpr int POINTS = Tiles<M>::POINTS;
    Given given;
    Tiles<M> tiles{given.p};
    std::int64_t depth = 4 * given.p.fine, panels = panels_of(given.p.coarse);
    std::int64_t unit = 1;  // bands that belong together
    std::int64_t line_size = Lines<M>(tiles).size();

    void load(std::int64_t from, std::int64_t to, std::int64_t number, float* lines, const Transformed& v) const {
        load_fine(tiles, from, to, given.from, number, given.p.fine, lines, v);
    }
    void weight(std::int64_t panel, float* u) const { gather_panel<M>(given.p, given.weight, panel, u); }

    // panels [first, last) of a tile, from its products
    void out(const Place& at, const float* m, std::int64_t step, std::int64_t first, std::int64_t last) const {
        const std::int64_t c0 = first * TILE_COLUMNS, end = least(last * TILE_COLUMNS, given.p.coarse);
        coarse_out<M>(given.p, m, step, given.bias, at, c0, end - c0, given.to);
    }
};

// The other way; panels are those of a phase, then those of the next. Neighbouring tiles add to one another's pixels,
// so the bands of an image belong together.
template <int M>
struct ToFine {
    static constexpr int POINTS = Tiles<M>::POINTS;
    Given given;
    Tiles<M> tiles{given.p};
    std::int64_t depth = given.p.coarse, of_phase = panels_of(given.p.fine), panels = 4 * of_phase;
    std::int64_t unit = tiles.down;
    std::int64_t line_size = 0;

    void load(std::int64_t from, std::int64_t to, std::int64_t number, float*, const Transformed& d) const {
        load_coarse(tiles, from, to, given.from, number, d);
        for (std::int64_t band = from; band < to; band += unit) fill_rest(tiles, band / unit, given.bias, given.to);
    }
    void weight(std::int64_t panel, float* u) const {
        scatter_panel<M>(given.p, given.weight, static_cast<int>(panel / of_phase), panel % of_phase * TILE_COLUMNS, u);
    }
    void out(const Place& at, const float* m, std::int64_t step, std::int64_t first, std::int64_t last) const {
        for (std::int64_t phase = first / of_phase; phase * of_phase < last; ++phase) {
            const std::int64_t begin = most(first, phase * of_phase), end = least(last, (phase + 1) * of_phase);
            const std::int64_t c0 = (begin - phase * of_phase) * TILE_COLUMNS;
            fine_out<M>(given.p, m + (begin - first) * TILE_COLUMNS, step, given.bias, at, static_cast<int>(phase), c0,
                        least((end - phase * of_phase) * TILE_COLUMNS, given.p.fine) - c0, given.to);
        }
    }
};

// A thread takes a block of tiles through the whole weight. A block's products stay in the cache, and so many tiles
// share a walk through the weight that it does not matter where that lies.
template <typename Pass>
static void by_tiles(const Pass& pass, std::int64_t queue) {
    constexpr int POINTS = Pass::POINTS;
    constexpr std::int64_t BLOCK = 96;
    const auto& tiles = pass.tiles;
    const std::int64_t u_step = step_of(pass.depth * TILE_COLUMNS), columns = pass.panels * TILE_COLUMNS;
    const Rooms<float> u_room(1, pass.panels * POINTS * u_step);
    float* u = u_room.first;
#pragma omp parallel for num_threads(queue) schedule(dynamic)
    for (std::int64_t panel = 0; panel < pass.panels; ++panel) pass.weight(panel, u + panel * POINTS * u_step);

    const std::int64_t bands = ceiling(tiles.bands_in_block(BLOCK, queue), pass.unit) * pass.unit;
    const std::int64_t count = bands * tiles.across, m_row = row_of(columns), m_step = step_of(count * m_row);
    const Rooms<float> line_room(queue, pass.line_size);
    const Rooms<float> v_room(queue, POINTS * in_rows(nullptr, count, pass.depth).step), m_room(queue, POINTS * m_step);
#pragma omp parallel for num_threads(queue) schedule(dynamic)
    for (std::int64_t from = 0; from < tiles.bands(); from += bands) {
        const std::int64_t to = least(from + bands, tiles.bands());
        const Transformed v = in_rows(v_room.mine(), count, pass.depth);
        float* m = m_room.mine();
        pass.load(from, to, 0, line_room.mine(), v);
        for (int k = 0; k < POINTS; ++k)
            wide_gemm((to - from) * tiles.across, columns, pass.depth, {v.data + k * v.step, v.row, 1},
                      {u + k * u_step, POINTS * u_step, TILE_COLUMNS}, m + k * m_step, m_row);
        over_tiles(tiles, from, to,
                   [&](const Place& at, std::int64_t i) { pass.out(at, m + i * m_row, m_step, 0, pass.panels); });
    }
}

// A thread transforms a panel of the weight and takes it through all tiles, or as many as the cache keeps.
template <typename Pass>
static void by_panels(const Pass& pass, std::int64_t queue) {
    constexpr int POINTS = Pass::POINTS;
    const auto& tiles = pass.tiles;
    const std::int64_t size = most(1, SHARED / (POINTS * row_of(pass.depth)));
    const std::int64_t bands = ceiling(tiles.bands_in_block(size, 1), pass.unit) * pass.unit;
    const std::int64_t count = bands * tiles.across;
    const std::int64_t u_step = step_of(pass.depth * TILE_COLUMNS), m_step = step_of(count * TILE_COLUMNS);
    const Rooms<float> line_room(queue, pass.line_size);
    const Rooms<float> v_room(1, POINTS * in_rows(nullptr, count, pass.depth).step);
    const Rooms<float> u_room(queue, POINTS * u_step), m_room(queue, POINTS * m_step);
    const Transformed v = in_rows(v_room.first, count, pass.depth);
    for (std::int64_t from = 0; from < tiles.bands(); from += bands) {
        const std::int64_t to = least(from + bands, tiles.bands());
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t band = from; band < to; band += pass.unit)
            pass.load(band, band + pass.unit, (band - from) * tiles.across, line_room.mine(), v);
#pragma omp parallel for num_threads(queue) schedule(dynamic)
        for (std::int64_t panel = 0; panel < pass.panels; ++panel) {
            float *u = u_room.mine(), *m = m_room.mine();
            pass.weight(panel, u);
            for (int k = 0; k < POINTS; ++k)
                gemm((to - from) * tiles.across, TILE_COLUMNS, pass.depth, {v.data + k * v.step, v.row, 1},
                     {u + k * u_step, 0, TILE_COLUMNS}, m + k * m_step, TILE_COLUMNS);
            over_tiles(tiles, from, to, [&](const Place& at, std::int64_t i) {
                pass.out(at, m + i * TILE_COLUMNS, m_step, panel, panel + 1);
            });
        }
    }
}

template <typename Pass>
static void run(const Pass& pass, std::int64_t queue) {
    const bool fits = Pass::POINTS * pass.depth * pass.panels * TILE_COLUMNS <= SHARED;
    (fits ? by_tiles<Pass> : by_panels<Pass>)(pass, queue);
}

constexpr int SLAB = 64;  // rows and columns of a task of wgrad

static inline std::int64_t slabs_of(std::int64_t channels) { return ceiling(channels, SLAB); }

static inline Transformed in_slabs(float* data, std::int64_t tiles, std::int64_t slabs) {
    return {data, step_of(slabs * tiles * SLAB), tiles * SLAB, SLAB, SLAB};
}

// A task is a block of the weight's gradient at all points; what later tiles add to it is transformed by itself.
template <int M>
static void wgrad_tiles(const Polyphase& p, const float* fine, const float* coarse, float* gradient,
                        std::int64_t queue) {
    const Tiles<M> tiles(p);
    const std::int64_t of_phase = slabs_of(p.fine), of_coarse = slabs_of(p.coarse), slabs = 4 * of_phase + of_coarse;
    const std::int64_t bands = tiles.bands_in_block(most(1, SHARED / (tiles.POINTS * slabs * SLAB)), 1);
    const std::int64_t count = bands * tiles.across;
    const Rooms<float> line_room(queue, Lines<M>(tiles).size());
    const Rooms<float> v_room(1, tiles.POINTS * in_slabs(nullptr, count, 4 * of_phase).step);
    const Rooms<float> d_room(1, tiles.POINTS * in_slabs(nullptr, count, of_coarse).step);
    const std::int64_t step = step_of(SLAB * SLAB);
    const Rooms<float> product_room(queue, tiles.POINTS * step);
    const Transformed v = in_slabs(v_room.first, count, 4 * of_phase), d = in_slabs(d_room.first, count, of_coarse);
    for (std::int64_t from = 0; from < tiles.bands(); from += bands) {
        const std::int64_t to = least(from + bands, tiles.bands());
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t band = from; band < to; ++band) {
            const std::int64_t number = (band - from) * tiles.across;
            load_fine(tiles, band, band + 1, fine, number, of_phase * SLAB, line_room.mine(), v);
            load_coarse(tiles, band, band + 1, coarse, number, d);
        }
#pragma omp parallel for num_threads(queue) schedule(dynamic)
        for (std::int64_t task = 0; task < of_coarse * 4 * of_phase; ++task) {
            float* products = product_room.mine();
            const std::int64_t row = task % of_coarse * SLAB, slab = task / of_coarse, c0 = slab % of_phase * SLAB;
            const std::int64_t rows = least(SLAB, p.coarse - row), columns = least(SLAB, p.fine - c0);
            for (int k = 0; k < tiles.POINTS; ++k)
                gemm(rows, columns, (to - from) * tiles.across, {d.at(0, row) + k * d.step, 1, d.row},
                     {v.at(0, slab * SLAB) + k * v.step, TILE_COLUMNS, v.row}, products + k * step, SLAB);
            weight_out<M, SLAB>(p, products, row, rows, static_cast<int>(slab / of_phase), c0, columns, from > 0,
                                gradient);
        }
    }
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

void winograd_gather(const Polyphase& p, int tile, const float* fine, const float* weight, const float* bias,
                     float* coarse, std::int64_t queue) {
    with_tile(tile, [&](auto size) { run(ToCoarse<decltype(size)::value>{{p, fine, weight, bias, coarse}}, queue); });
}

void winograd_scatter(const Polyphase& p, int tile, const float* coarse, const float* weight, const float* bias,
                      float* fine, std::int64_t queue) {
    with_tile(tile, [&](auto size) { run(ToFine<decltype(size)::value>{{p, coarse, weight, bias, fine}}, queue); });
}

void winograd_wgrad(const Polyphase& p, int tile, const float* fine, const float* coarse, float* gradient,
                    std::int64_t queue) {
    with_tile(tile, [&](auto size) { wgrad_tiles<decltype(size)::value>(p, fine, coarse, gradient, queue); });
}

}  // namespace fastgan::FASTGAN_ISA
