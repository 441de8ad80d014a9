// The backward of batch normalization and its activation in two passes over ga and y, both [M, C] for each group:
//
//     sums    sum gz and sum gz * xhat,   gz = ga * act'(z),  z = gamma * xhat + beta,  xhat = (y - mean) * rstd
//     apply   g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) / M)
//
// Each block is summed row by row in float64; blocks are summed in order, so that results repeat bit for bit.
#include <optional>

#include "normalization.h"
#include "scratch.h"

namespace fastgan {

// gz and xhat of a packed row
struct PackedRow {
    float gz[BLOCK_CHANNELS], xhat[BLOCK_CHANNELS];

    template <Activation kind, typename T>
    void load(Kind<kind>, const T* ga, const T* y, std::int64_t size, const Coefficients& by, float slope) {
        float ga_buffer[BLOCK_CHANNELS], y_buffer[BLOCK_CHANNELS];
        const float *gradients = widen(ga, size, ga_buffer), *values = widen(y, size, y_buffer);
        for (std::int64_t i = 0; i < size; ++i) {
            xhat[i] = (values[i] - by.mean[i]) * by.rstd[i];
            gz[i] = activation_backward<kind>(gradients[i], by.gamma[i] * xhat[i] + by.beta[i], slope);
        }
    }
};

// Writes sums and xhat_sums [C] at the channels of a block
template <Activation kind, typename T>
static void sum_block(const T* ga, const T* y, const RowBlock& block, const Coefficients& by, float slope, double* sums,
                      double* xhat_sums) {
    PackedRow packed;
    double sum[BLOCK_CHANNELS] = {}, xhat_sum[BLOCK_CHANNELS] = {};
    for (std::int64_t row = 0; row < block.packed_rows(); ++row) {
        const std::int64_t begin = block.begin(row), size = block.size(row);
        packed.load(Kind<kind>(), ga + begin, y + begin, size, by, slope);
        for (std::int64_t i = 0; i < size; ++i) sum[i] += packed.gz[i];
        for (std::int64_t i = 0; i < size; ++i) xhat_sum[i] += packed.gz[i] * packed.xhat[i];
    }
    block.sum_packed(sum, sums);
    block.sum_packed(xhat_sum, xhat_sums);
}

void bn_backward_sums(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                      const Workspace&, float* sums, float* totals, std::int64_t threads) {
    const RowBlocks blocks(shape);
    const std::int64_t parts = blocks.parts, channels = shape.channels, size = shape.groups * parts * channels;
    const ScratchPool<double> partials(1, 2 * size);  // [2, G, parts, C]
    for_each_block(blocks, normalization, threads,
                   [&](auto type, auto kind, const RowBlock& block, const Coefficients& by) {
                       using T = decltype(type);
                       double* to = partials.data + (block.group * parts + block.part) * channels;
                       sum_block<kind()>(static_cast<const T*>(ga), static_cast<const T*>(y), block, by,
                                         normalization.slope, to, to + size);
                   });
    for (std::int64_t i = 0; i < 2 * shape.groups; ++i) {
        double* total = partials.data + i * parts * channels;  // of the first part, to which the others are added
        for (std::int64_t t = 1; t < parts; ++t)
            for (std::int64_t c = 0; c < channels; ++c) total[c] += total[t * channels + c];
        for (std::int64_t c = 0; c < channels; ++c) sums[i * channels + c] = static_cast<float>(total[c]);
    }
    for (std::int64_t i = 0; totals != nullptr && i < 2 * channels; ++i) {
        const double* of_group = partials.data + i / channels * size + i % channels;
        double total = 0.0;
        for (std::int64_t group = 0; group < shape.groups; ++group) total += of_group[group * parts * channels];
        totals[i] = static_cast<float>(total);
    }
}

// sums / M for the elements of a packed row
struct Means {
    float gz[BLOCK_CHANNELS], gz_xhat[BLOCK_CHANNELS];

    Means(const Shape& shape, const RowBlock& block, const float* sums, float inverse_count) {
        block.repeat(sums + block.group * shape.channels, gz);
        block.repeat(sums + (shape.groups + block.group) * shape.channels, gz_xhat);
        for (float& mean : gz) mean *= inverse_count;
        for (float& mean : gz_xhat) mean *= inverse_count;
    }
};

// means: null with running statistics, which have no gradient
template <Activation kind, typename T>
static void apply_block(const T* ga, const T* y, const RowBlock& block, const Coefficients& by, const Means* means,
                        float slope, T* g) {
    PackedRow packed;
    float buffer[BLOCK_CHANNELS], *gz = packed.gz;
    for (std::int64_t row = 0; row < block.packed_rows(); ++row) {
        const std::int64_t begin = block.begin(row), size = block.size(row);
        packed.load(Kind<kind>(), ga + begin, y + begin, size, by, slope);
        float* to = output_buffer(g + begin, buffer);
        if (means != nullptr)
            for (std::int64_t i = 0; i < size; ++i) gz[i] -= means->gz[i] + packed.xhat[i] * means->gz_xhat[i];
        for (std::int64_t i = 0; i < size; ++i) to[i] = by.gamma[i] * by.rstd[i] * gz[i];
        store_rounded(to, size, g + begin);
    }
}

void bn_backward_apply(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                       const float* sums, float inverse_count, void* g, std::int64_t threads) {
    for_each_block(RowBlocks(shape), normalization, threads,
                   [&](auto type, auto kind, const RowBlock& block, const Coefficients& by) {
                       using T = decltype(type);
                       std::optional<Means> means;
                       if (sums != nullptr) means.emplace(shape, block, sums, inverse_count);
                       apply_block<kind()>(static_cast<const T*>(ga), static_cast<const T*>(y), block, by,
                                           means ? &*means : nullptr, normalization.slope, static_cast<T*>(g));
                   });
}

}  // namespace fastgan
