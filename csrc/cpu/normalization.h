// The coefficients of a batch normalization for a block, and the loop over blocks for each type and activation.
#pragma once

#include <type_traits>

#include "elements.h"
#include "row_blocks.h"

namespace fastgan {

// The coefficients for the elements of a packed row
struct Coefficients {
    float mean[BLOCK_CHANNELS], rstd[BLOCK_CHANNELS], gamma[BLOCK_CHANNELS], beta[BLOCK_CHANNELS];

    Coefficients(const Normalization& normalization, const RowBlock& block, const Shape& shape) {
        const float* stats = normalization.stats + block.group * shape.channels;
        block.repeat(stats, mean);
        block.repeat(stats + shape.groups * shape.channels, rstd);
        block.repeat(normalization.gamma, gamma);
        block.repeat(normalization.beta, beta);
    }
};

template <Activation kind>
using Kind = std::integral_constant<Activation, kind>;

// Calls body(Kind<activation>{})
template <typename Body>
static inline void with_activation(Activation activation, Body body) {
    if (activation == Activation::none) body(Kind<Activation::none>{});
    if (activation == Activation::relu) body(Kind<Activation::relu>{});
    if (activation == Activation::leaky_relu) body(Kind<Activation::leaky_relu>{});
    if (activation == Activation::tanh) body(Kind<Activation::tanh>{});
}

// Calls body(T{}, Kind{}, block, coefficients) for every block of a matrix, in `threads` threads
template <typename Body>
static inline void for_each_block(const RowBlocks& blocks, const Normalization& normalization, std::int64_t threads,
                                  Body body) {
    with_type(blocks.shape.dtype, [&](auto type) {
        with_activation(normalization.activation, [&](auto kind) {
#pragma omp parallel for num_threads(threads) schedule(static)
            for (std::int64_t task = 0; task < blocks.count(); ++task) {
                const RowBlock block = blocks[task];
                body(type, kind, block, Coefficients(normalization, block, blocks.shape));
            }
        });
    });
}

}  // namespace fastgan
