// a = act(gamma * (y - mean) * rstd + beta) of y [M, C], block by block.
#include "normalization.h"

namespace fastgan {

template <Activation kind, typename T>
static void bn_act_block(const T* y, const RowBlock& block, const Coefficients& by, float slope, T* a) {
    float buffer[BLOCK_CHANNELS];
    for (std::int64_t row = 0; row < block.packed_rows(); ++row) {
        const std::int64_t begin = block.begin(row), size = block.size(row);
        const float* values = widen(y + begin, size, buffer);
        float* results = output_buffer(a + begin, buffer);
        for (std::int64_t i = 0; i < size; ++i)
            results[i] = activate<kind>(by.gamma[i] * ((values[i] - by.mean[i]) * by.rstd[i]) + by.beta[i], slope);
        store_rounded(results, size, a + begin);
    }
}

void bn_act_forward(const Shape& shape, const void* y, const Normalization& normalization, void* a,
                    std::int64_t threads) {
    for_each_block(RowBlocks(shape), normalization, threads,
                   [&](auto type, auto kind, const RowBlock& block, const Coefficients& by) {
                       using T = decltype(type);
                       bn_act_block<kind()>(static_cast<const T*>(y), block, by, normalization.slope,
                                            static_cast<T*>(a));
                   });
}

}  // namespace fastgan
