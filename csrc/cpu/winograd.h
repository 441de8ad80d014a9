// The transforms of a 4x4 convolution of stride 2, and of its transpose, by Winograd's minimal filtering.
//
// The convolution is the sum, over the four phases of the fine image (even and odd rows and columns), of 2x2
// convolutions of stride 1. A tile of M x M outputs (coarse pixels) reads (M + 1) x (M + 1) pixels of each phase. In
// one dimension F(M, 2) computes it with M + 1 multiplications instead of 2 M:
//
//     y = A^T [(G g) * (B^T d)]          d: M + 1 inputs, g: 2 taps, y: M outputs
//
// Nested in two dimensions, this is a convolution. Summed over channels and phases, each of the (M + 1)^2 products is a
// GEMM. Its adjoints are the other passes, with the same matrices:
//
//     coarse = A^T (U V) A               V = B^T fine B,   U = G weight G^T
//     fine   = B (U^T D) B^T             D = A coarse A^T; adjacent tiles share a row and a column, which are added
//     weight = G^T (V^T D) G
//
// Lavin and Gray (2016), "Fast algorithms for convolutional neural networks". F(2, 2) has the points 0, 1 and infinity
// and transforms with additions only. F(4, 2) has the points 0, 1/2, -1, 2 and infinity, the most accurate choice of
// small rational numbers: its rounding error is twice that of F(2, 2), and about that of direct summation.
#pragma once

#include "vector.h"

namespace fastgan {

template <int M>
struct Points;

template <>
struct Points<2> {
    static constexpr float A[3][2] = {{1, 0}, {1, 1}, {0, 1}};
    static constexpr float G[3][2] = {{1, 0}, {1, 1}, {0, 1}};
    static constexpr float B[3][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}};  // B^T
};

template <>
struct Points<4> {
    static constexpr float A[5][4] = {{1, 0, 0, 0}, {1, -1, 1, -1}, {1, .5f, .25f, .125f}, {1, 2, 4, 8}, {0, 0, 0, 1}};
    static constexpr float G[5][2] = {{1, 0}, {2.f / 9, -2.f / 9}, {8.f / 9, 4.f / 9}, {1.f / 18, 1.f / 9}, {0, 1}};
    static constexpr float B[5][5] = {
        {1, -1.5f, -1.5f, 1, 0}, {0, -1, 2.5f, -1, 0}, {0, 2, 1, -1, 0}, {0, -1, 1, 2, 0}, {0, 1, -1.5f, -1.5f, 1}};
};

// sum_k matrix(k) * from[k * step], without the terms that are zero
template <int TERMS, typename V, typename Coefficient>
static inline V linear_combination(Coefficient coefficient, const V* from, int step) {
    V sum{};
    bool begun = false;
#pragma GCC unroll 8
    for (int k = 0; k < TERMS; ++k) {
        const float factor = coefficient(k);
        if (factor == 0.0f) continue;
        const V term = factor == 1.0f ? from[k * step] : factor * from[k * step];
        sum = begun ? sum + term : term;
        begun = true;
    }
    return sum;
}

// to [ROWS, ROWS] = matrix * from * matrix^T, with `matrix` [ROWS, TERMS] as a function of row and column
template <int ROWS, int TERMS, typename V, typename Matrix>
static inline void transform_2d(Matrix matrix, const V* from, V* to) {
    V half[ROWS * TERMS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < TERMS; ++j)
            half[i * TERMS + j] = linear_combination<TERMS>([&](int k) { return matrix(i, k); }, from + j, TERMS);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; ++j)
            to[i * ROWS + j] = linear_combination<TERMS>([&](int k) { return matrix(j, k); }, half + i * TERMS, 1);
}

// V = B^T d B of [M + 1, M + 1]
template <int M, typename V>
static inline void fine_transform(const V* d, V* v) {
    transform_2d<M + 1, M + 1>([](int i, int k) { return Points<M>::B[i][k]; }, d, v);
}

// B p B^T, its adjoint
template <int M, typename V>
static inline void fine_adjoint(const V* p, V* d) {
    transform_2d<M + 1, M + 1>([](int i, int k) { return Points<M>::B[k][i]; }, p, d);
}

// D = A y A^T: [M, M] to [M + 1, M + 1]
template <int M, typename V>
static inline void coarse_transform(const V* y, V* d) {
    transform_2d<M + 1, M>([](int i, int k) { return Points<M>::A[i][k]; }, y, d);
}

// A^T m A, its adjoint
template <int M, typename V>
static inline void coarse_adjoint(const V* m, V* y) {
    transform_2d<M, M + 1>([](int i, int k) { return Points<M>::A[k][i]; }, m, y);
}

// U = G g G^T: [2, 2] to [M + 1, M + 1]
template <int M, typename V>
static inline void weight_transform(const V* g, V* u) {
    transform_2d<M + 1, 2>([](int i, int k) { return Points<M>::G[i][k]; }, g, u);
}

// G^T u G, its adjoint
template <int M, typename V>
static inline void weight_adjoint(const V* u, V* g) {
    transform_2d<2, M + 1>([](int i, int k) { return Points<M>::G[k][i]; }, u, g);
}

}  // namespace fastgan
