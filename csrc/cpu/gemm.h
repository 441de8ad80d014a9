// Products of float32 matrices out of registers.
//
// Sums are taken DEPTH terms at a time, each from zero: the rounding error of a sum grows with the length of its chain.
#pragma once

#include "vector.h"

namespace fastgan::FASTGAN_ISA {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;  // x 2 vectors: 24 of 32 registers hold sums
#else
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif
constexpr int TILE_COLUMNS = 2 * LANES;
constexpr std::int64_t DEPTH = 64;

// Element (i, k) of a matrix lies at data[i * row + k * step].
struct Factor {
    const float* data;
    std::int64_t row, step;
};

// Row k of columns [j * TILE_COLUMNS, (j + 1) * TILE_COLUMNS) begins at data[j * panel + k * row].
struct Columns {
    const float* data;
    std::int64_t panel, row;
};

static inline std::int64_t panels_of(std::int64_t columns) { return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS; }

// c [ROWS, TILE_COLUMNS] (+)= a [ROWS, depth] b [depth, TILE_COLUMNS]
template <int ROWS>
static inline void tile(const Factor& a, const float* b, std::int64_t b_row, std::int64_t depth, float* c,
                        std::int64_t c_row, bool adds) {
    Vector sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) sum[i][0] = sum[i][1] = Vector{};
    const float* column = a.data;
    for (std::int64_t k = 0; k < depth; ++k, column += a.step, b += b_row) {
        const Vector left = load<Vector>(b), right = load<Vector>(b + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const float factor = column[i * a.row];
            sum[i][0] += factor * left;
            sum[i][1] += factor * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
        float* to = c + i * c_row;
        store(to, adds ? sum[i][0] + load<Vector>(to) : sum[i][0]);
        store(to + LANES, adds ? sum[i][1] + load<Vector>(to + LANES) : sum[i][1]);
    }
}

// The same for 1 to ROWS rows.
template <int ROWS>
static inline void tile_of(int rows, const Factor& a, const float* b, std::int64_t b_row, std::int64_t depth, float* c,
                           std::int64_t c_row, bool adds) {
    if (rows == ROWS) {
        tile<ROWS>(a, b, b_row, depth, c, c_row, adds);
    } else if constexpr (ROWS > 1) {
        tile_of<ROWS - 1>(rows, a, b, b_row, depth, c, c_row, adds);
    }
}

// c [M, TILE_COLUMNS] (+)= a b, of up to DEPTH terms; `next` is the b that comes after it, `depth` rows, or null: it is
// asked for while this one is at work, and c before it is written, as both lie far away.
static inline void block(std::int64_t M, const Factor& a, const float* b, std::int64_t b_row, std::int64_t depth,
                         float* c, std::int64_t c_row, bool adds, const float* next) {
    const std::int64_t share = (depth * TILE_ROWS + M - 1) / M;  // rows of the next b for each tile
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < M; i += TILE_ROWS) {
        const int rows = static_cast<int>(M - i < TILE_ROWS ? M - i : TILE_ROWS);
        for (std::int64_t end = row + share; next != nullptr && row < end; ++row) prefetch(next + row * b_row);
        for (int k = 0; k < rows; ++k) prefetch(c + (i + k) * c_row);
        tile_of<TILE_ROWS>(rows, {a.data + i * a.row, a.row, a.step}, b, b_row, depth, c + i * c_row, c_row, adds);
    }
}

// c [M, N] (+)= a [M, K] b [K, N]; the columns of b and c are padded to a multiple of TILE_COLUMNS. A column of tiles is
// finished before the next: c stays in the cache.
static inline void gemm(std::int64_t M, std::int64_t N, std::int64_t K, const Factor& a, const Columns& b, float* c,
                        std::int64_t c_row, bool adds = false) {
    for (std::int64_t j = 0; j * TILE_COLUMNS < N; ++j) {
        for (std::int64_t k = 0; k < K; k += DEPTH) {
            const float* from = b.data + j * b.panel + k * b.row;
            const std::int64_t depth = K - k < DEPTH ? K - k : DEPTH;
            block(M, {a.data + k * a.step, a.row, a.step}, from, b.row, depth, c + j * TILE_COLUMNS, c_row, adds || k > 0,
                  K - k >= 2 * DEPTH ? from + DEPTH * b.row : nullptr);
        }
    }
}

// c = a b in an order in which a is read once: for a wide b.
static inline void wide_gemm(std::int64_t M, std::int64_t N, std::int64_t K, const Factor& a, const Columns& b,
                             float* c, std::int64_t c_row) {
    for (std::int64_t k = 0; k < K; k += DEPTH) {
        const std::int64_t depth = K - k < DEPTH ? K - k : DEPTH;
        for (std::int64_t j = 0; j * TILE_COLUMNS < N; ++j) {
            const float* from = b.data + j * b.panel + k * b.row;
            block(M, {a.data + k * a.step, a.row, a.step}, from, b.row, depth, c + j * TILE_COLUMNS, c_row, k > 0,
                  (j + 1) * TILE_COLUMNS < N ? from + b.panel : nullptr);
        }
    }
}

}  // namespace fastgan::FASTGAN_ISA
