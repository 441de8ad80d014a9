// The three passes of a 4x4 convolution of stride 2 between a fine and a coarse image, by Winograd's minimal filtering.
//
// Tiles are transformed, multiplied and transformed back in the cache. Sizes determine which factor of a product stays
// there: if images are large, a thread multiplies a block of tiles by the whole weight, which all threads share
// (`by_tiles`); if the transformed weight would not fit, a thread transforms a panel of it and multiplies all tiles by
// that (`by_panels`).
#include "winograd.h"

#include "scratch.h"
#include "winograd_tiles.h"
#include "winograd_weight.h"

namespace fastgan {

constexpr std::int64_t SHARED = 1 << 22;  // elements that fit in the last-level cache, shared by all threads
using Pool = ScratchPool<float>;

// The length of a row in memory: whole panels, but not a multiple of a page, so that rows use different cache sets.
static inline std::int64_t row_stride(std::int64_t columns) { return panels_of(columns) * NR + 16; }

static inline TransformedTiles in_rows(float* data, std::int64_t tiles, std::int64_t columns) {
    return {data, point_stride(tiles * row_stride(columns)), 0, columns, row_stride(columns)};
}

// Loads the tiles of rows [first, last), numbered from `number` on
template <int M>
static void load_fine(const Tiles<M>& tiles, std::int64_t first, std::int64_t last, const float* fine,
                      std::int64_t number, std::int64_t phase_columns, float* buffer, const TransformedTiles& v) {
    const Convolution& conv = tiles.conv;
    const FineRows<M> rows(tiles);
    for_each_tile(tiles, first, last, [&](const TilePosition& at, std::int64_t i) {
        if (at.x == 0) rows.copy(fine + at.image * conv.fine_h * conv.fine_w * conv.fine, at.y, buffer);
        load_fine_tile<M>(rows, buffer, at.x, v, number + i, phase_columns);
    });
}

template <int M>
static void load_coarse(const Tiles<M>& tiles, std::int64_t first, std::int64_t last, const float* coarse,
                        std::int64_t number, const TransformedTiles& d) {
    for_each_tile(tiles, first, last, [&](const TilePosition& at, std::int64_t i) {
        load_coarse_tile<M>(tiles.conv, coarse, at, d, number + i);
    });
}

struct Arguments {
    const Convolution& conv;
    const float *from, *weight, *bias;
    float* to;
};

// Fine tiles are the rows of a matrix with `depth` columns; its products with `panels` of the weight are coarse tiles.
template <int M>
struct ToCoarse {
    static constexpr int POINTS = Tiles<M>::POINTS;
    Arguments args;
    Tiles<M> tiles{args.conv};
    std::int64_t depth = 4 * args.conv.fine, panels = panels_of(args.conv.coarse);
    std::int64_t unit = 1;  // rows of tiles that the same thread must compute
    std::int64_t buffer_size = FineRows<M>(tiles).size();

    void load(std::int64_t first, std::int64_t last, std::int64_t number, float* buffer,
              const TransformedTiles& v) const {
        load_fine(tiles, first, last, args.from, number, args.conv.fine, buffer, v);
    }
    void weight(std::int64_t panel, float* u) const { to_coarse_panel<M>(args.conv, args.weight, panel, u); }

    // Stores panels [first, last) of a tile from its products
    void store(const TilePosition& at, const float* m, std::int64_t point, std::int64_t first,
               std::int64_t last) const {
        const std::int64_t channel = first * NR, count = std::min(last * NR, args.conv.coarse) - channel;
        store_coarse_tile<M>(args.conv, m, point, args.bias, at, channel, count, args.to);
    }
};

// From coarse to fine; panels are ordered by phase. Adjacent tiles contribute to the same pixels, so one thread
// computes all rows of an image.
template <int M>
struct ToFine {
    static constexpr int POINTS = Tiles<M>::POINTS;
    Arguments args;
    Tiles<M> tiles{args.conv};
    std::int64_t depth = args.conv.coarse, of_phase = panels_of(args.conv.fine), panels = 4 * of_phase;
    std::int64_t unit = tiles.rows;
    std::int64_t buffer_size = 0;

    void load(std::int64_t first, std::int64_t last, std::int64_t number, float*, const TransformedTiles& d) const {
        load_coarse(tiles, first, last, args.from, number, d);
        for (std::int64_t row = first; row < last; row += unit) fill_rest(tiles, row / unit, args.bias, args.to);
    }
    void weight(std::int64_t panel, float* u) const {
        to_fine_panel<M>(args.conv, args.weight, static_cast<int>(panel / of_phase), panel % of_phase * NR, u);
    }
    void store(const TilePosition& at, const float* m, std::int64_t point, std::int64_t first,
               std::int64_t last) const {
        for (std::int64_t phase = first / of_phase; phase * of_phase < last; ++phase) {
            const std::int64_t begin = std::max(first, phase * of_phase), end = std::min(last, (phase + 1) * of_phase);
            const std::int64_t channel = (begin - phase * of_phase) * NR;
            const std::int64_t count = std::min((end - phase * of_phase) * NR, args.conv.fine) - channel;
            store_fine_tile<M>(args.conv, m + (begin - first) * NR, point, args.bias, at, static_cast<int>(phase),
                               channel, count, args.to);
        }
    }
};

// A thread multiplies a block of tiles by the whole weight. The products of a block stay in the cache, and a block has
// so many tiles that the time to read the weight does not matter.
template <typename Pass>
static void by_tiles(const Pass& pass, std::int64_t threads) {
    constexpr int POINTS = Pass::POINTS;
    constexpr std::int64_t BLOCK = 96;
    const auto& tiles = pass.tiles;
    const std::int64_t u_point = point_stride(pass.depth * NR), columns = pass.panels * NR;
    const Pool u_pool(1, pass.panels * POINTS * u_point);
    float* u = u_pool.data;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (std::int64_t panel = 0; panel < pass.panels; ++panel) pass.weight(panel, u + panel * POINTS * u_point);

    const std::int64_t rows = ceil_div(tiles.rows_in_block(BLOCK, threads), pass.unit) * pass.unit;
    const std::int64_t count = rows * tiles.columns, m_row = row_stride(columns), m_point = point_stride(count * m_row);
    const Pool buffer_pool(threads, pass.buffer_size);
    const Pool v_pool(threads, POINTS * in_rows(nullptr, count, pass.depth).point), m_pool(threads, POINTS * m_point);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (std::int64_t first = 0; first < tiles.all_rows(); first += rows) {
        const std::int64_t last = std::min(first + rows, tiles.all_rows());
        const TransformedTiles v = in_rows(v_pool.of_this_thread(), count, pass.depth);
        float* m = m_pool.of_this_thread();
        pass.load(first, last, 0, buffer_pool.of_this_thread(), v);
        for (int k = 0; k < POINTS; ++k)
            wide_gemm((last - first) * tiles.columns, columns, pass.depth, {v.data + k * v.point, v.row, 1},
                      {u + k * u_point, POINTS * u_point, NR}, m + k * m_point, m_row);
        for_each_tile(tiles, first, last, [&](const TilePosition& at, std::int64_t i) {
            pass.store(at, m + i * m_row, m_point, 0, pass.panels);
        });
    }
}

// A thread transforms a panel of the weight and multiplies all tiles by it, or as many as fit in the cache.
template <typename Pass>
static void by_panels(const Pass& pass, std::int64_t threads) {
    constexpr int POINTS = Pass::POINTS;
    const auto& tiles = pass.tiles;
    const std::int64_t size = std::max<std::int64_t>(1, SHARED / (POINTS * row_stride(pass.depth)));
    const std::int64_t rows = ceil_div(tiles.rows_in_block(size, 1), pass.unit) * pass.unit;
    const std::int64_t count = rows * tiles.columns;
    const std::int64_t u_point = point_stride(pass.depth * NR), m_point = point_stride(count * NR);
    const Pool buffer_pool(threads, pass.buffer_size);
    const Pool v_pool(1, POINTS * in_rows(nullptr, count, pass.depth).point);
    const Pool u_pool(threads, POINTS * u_point), m_pool(threads, POINTS * m_point);
    const TransformedTiles v = in_rows(v_pool.data, count, pass.depth);
    for (std::int64_t first = 0; first < tiles.all_rows(); first += rows) {
        const std::int64_t last = std::min(first + rows, tiles.all_rows());
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = first; row < last; row += pass.unit)
            pass.load(row, row + pass.unit, (row - first) * tiles.columns, buffer_pool.of_this_thread(), v);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (std::int64_t panel = 0; panel < pass.panels; ++panel) {
            float *u = u_pool.of_this_thread(), *m = m_pool.of_this_thread();
            pass.weight(panel, u);
            for (int k = 0; k < POINTS; ++k)
                gemm((last - first) * tiles.columns, NR, pass.depth, {v.data + k * v.point, v.row, 1},
                     {u + k * u_point, 0, NR}, m + k * m_point, NR);
            for_each_tile(tiles, first, last, [&](const TilePosition& at, std::int64_t i) {
                pass.store(at, m + i * NR, m_point, panel, panel + 1);
            });
        }
    }
}

template <typename Pass>
static void run(const Pass& pass, std::int64_t threads) {
    const bool fits = Pass::POINTS * pass.depth * pass.panels * NR <= SHARED;
    (fits ? by_tiles<Pass> : by_panels<Pass>)(pass, threads);
}

constexpr std::int64_t SIDE = 64;  // rows and columns of a task of wgrad

static inline TransformedTiles in_groups(float* data, std::int64_t tiles, std::int64_t groups) {
    return {data, point_stride(groups * tiles * SIDE), tiles * SIDE, SIDE, SIDE};
}

// A task is a block of the weight's gradient at all points. Sums over later tiles are transformed separately and added.
template <int M>
static void wgrad_tiles(const Convolution& conv, const float* fine, const float* coarse, float* gradient,
                        std::int64_t threads) {
    constexpr int POINTS = Tiles<M>::POINTS;
    const Tiles<M> tiles(conv);
    const std::int64_t of_phase = ceil_div(conv.fine, SIDE), of_coarse = ceil_div(conv.coarse, SIDE);
    const std::int64_t size = SHARED / (POINTS * (4 * of_phase + of_coarse) * SIDE);
    const std::int64_t rows = tiles.rows_in_block(std::max<std::int64_t>(1, size), 1), count = rows * tiles.columns;
    const Pool buffer_pool(threads, FineRows<M>(tiles).size());
    const Pool v_pool(1, POINTS * in_groups(nullptr, count, 4 * of_phase).point);
    const Pool d_pool(1, POINTS * in_groups(nullptr, count, of_coarse).point);
    const std::int64_t point = point_stride(SIDE * SIDE);
    const Pool product_pool(threads, POINTS * point);
    const TransformedTiles v = in_groups(v_pool.data, count, 4 * of_phase);
    const TransformedTiles d = in_groups(d_pool.data, count, of_coarse);
    for (std::int64_t first = 0; first < tiles.all_rows(); first += rows) {
        const std::int64_t last = std::min(first + rows, tiles.all_rows());
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = first; row < last; ++row) {
            const std::int64_t number = (row - first) * tiles.columns;
            load_fine(tiles, row, row + 1, fine, number, of_phase * SIDE, buffer_pool.of_this_thread(), v);
            load_coarse(tiles, row, row + 1, coarse, number, d);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (std::int64_t task = 0; task < of_coarse * 4 * of_phase; ++task) {
            float* products = product_pool.of_this_thread();
            const std::int64_t group = task / of_coarse;
            const std::int64_t row = task % of_coarse * SIDE, column = group % of_phase * SIDE;
            const std::int64_t height = std::min(SIDE, conv.coarse - row), width = std::min(SIDE, conv.fine - column);
            for (int k = 0; k < POINTS; ++k)
                gemm(height, width, (last - first) * tiles.columns, {d.at(0, row) + k * d.point, 1, d.row},
                     {v.at(0, group * SIDE) + k * v.point, NR, v.row}, products + k * point, SIDE);
            store_weight<M, SIDE>(conv, products, row, height, static_cast<int>(group / of_phase), column, width,
                                  first > 0, gradient);
        }
    }
}

void winograd_to_coarse(const Convolution& conv, const float* fine, const float* weight, const float* bias,
                        float* coarse, std::int64_t threads) {
    const Arguments args{conv, fine, weight, bias, coarse};
    if (conv.tile == 2) run(ToCoarse<2>{args}, threads);
    else run(ToCoarse<4>{args}, threads);
}

void winograd_to_fine(const Convolution& conv, const float* coarse, const float* weight, const float* bias, float* fine,
                      std::int64_t threads) {
    const Arguments args{conv, coarse, weight, bias, fine};
    if (conv.tile == 2) run(ToFine<2>{args}, threads);
    else run(ToFine<4>{args}, threads);
}

void winograd_wgrad(const Convolution& conv, const float* fine, const float* coarse, float* gradient,
                    std::int64_t threads) {
    (conv.tile == 2 ? wgrad_tiles<2> : wgrad_tiles<4>)(conv, fine, coarse, gradient, threads);
}

}  // namespace fastgan
