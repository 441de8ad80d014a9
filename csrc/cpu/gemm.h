// C [M, N] (+)= A [M, K] B [K, N] in float32, in the manner of BLIS: a micro-kernel keeps MR x NR sums in registers.
//
// Blocks of KC terms are summed separately, because the rounding error of a sum grows with its number of terms.
#pragma once

#include <algorithm>

#include "fastgan/kernels.h"
#include "vector.h"

namespace fastgan {

#if defined(__AVX512F__)
constexpr int MR = 12;  // x 2 vectors: 24 of 32 registers are sums
#else
constexpr int MR = 6;  // 12 of 16
#endif
constexpr std::int64_t NR = 2 * VECTOR, KC = 64;

inline std::int64_t panels_of(std::int64_t columns) { return ceil_div(columns, NR); }

// Element (i, k) is data[i * row + k * column].
struct MatrixA {
    const float* data;
    std::int64_t row, column;
};

// Panels of NR columns: row k of panel j begins at data[j * panel + k * row].
struct PackedB {
    const float* data;
    std::int64_t panel, row;
};

// c [ROWS, NR] (+)= a [ROWS, depth] b [depth, NR], with ROWS from 1 to MR
template <int ROWS>
static inline void micro_kernel(int rows, const MatrixA& a, const float* b, std::int64_t b_row, std::int64_t depth,
                                float* c, std::int64_t c_row, bool adds) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return micro_kernel<ROWS - 1>(rows, a, b, b_row, depth, c, c_row, adds);
    }
    Vector sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) sum[i][0] = sum[i][1] = Vector{};
    const float* column = a.data;
    for (std::int64_t k = 0; k < depth; ++k, column += a.column, b += b_row) {
        const Vector left = load<Vector>(b), right = load<Vector>(b + VECTOR);
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
        store(to + VECTOR, adds ? sum[i][1] + load<Vector>(to + VECTOR) : sum[i][1]);
    }
}

// c [M, NR] (+)= a b, of up to KC terms. c is prefetched before it is written, and meanwhile `next`, the `depth` rows
// of the following b, unless it is null.
static inline void panel_product(std::int64_t M, const MatrixA& a, const float* b, std::int64_t b_row,
                                 std::int64_t depth, float* c, std::int64_t c_row, bool adds, const float* next) {
    const std::int64_t share = (depth * MR + M - 1) / M;  // rows of the next b for each micro-kernel
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < M; i += MR) {
        const int rows = static_cast<int>(std::min<std::int64_t>(MR, M - i));
        for (std::int64_t end = row + share; next != nullptr && row < end; ++row) prefetch(next + row * b_row);
        for (int k = 0; k < rows; ++k) prefetch(c + (i + k) * c_row);
        micro_kernel<MR>(rows, {a.data + i * a.row, a.row, a.column}, b, b_row, depth, c + i * c_row, c_row, adds);
    }
}

// The columns of b and c are padded to a multiple of NR. One panel of c is computed after another, so that it stays in
// the cache.
static inline void gemm(std::int64_t M, std::int64_t N, std::int64_t K, const MatrixA& a, const PackedB& b, float* c,
                        std::int64_t c_row, bool adds = false) {
    for (std::int64_t j = 0; j < panels_of(N); ++j) {
        for (std::int64_t k = 0; k < K; k += KC) {
            const float* from = b.data + j * b.panel + k * b.row;
            panel_product(M, {a.data + k * a.column, a.row, a.column}, from, b.row, std::min(KC, K - k), c + j * NR,
                          c_row, adds || k > 0, K - k >= 2 * KC ? from + KC * b.row : nullptr);
        }
    }
}

// c = a b for a wide b: a is read only once
static inline void wide_gemm(std::int64_t M, std::int64_t N, std::int64_t K, const MatrixA& a, const PackedB& b,
                             float* c, std::int64_t c_row) {
    for (std::int64_t k = 0; k < K; k += KC) {
        for (std::int64_t j = 0; j < panels_of(N); ++j) {
            const float* from = b.data + j * b.panel + k * b.row;
            panel_product(M, {a.data + k * a.column, a.row, a.column}, from, b.row, std::min(KC, K - k), c + j * NR,
                          c_row, k > 0, j + 1 < panels_of(N) ? from + b.panel : nullptr);
        }
    }
}

}  // namespace fastgan
