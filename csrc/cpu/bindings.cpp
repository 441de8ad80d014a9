// `fastgan._cpu_portable`, `fastgan._cpu_avx2` and `fastgan._cpu_avx512`: the same sources, each compiled for one
// instruction set.
#include "fastgan/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <utility>

#include "convolution.h"

namespace fastgan {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;
using Image = std::array<std::int64_t, 3>;  // height, width, channels

// tile, images, fine, coarse, kernel, stride, padding
using ConvolutionArguments = std::tuple<int, std::int64_t, Image, Image, Pair, Pair, Pair>;

Convolution convolution_of(const ConvolutionArguments& arguments) {
    const auto& [tile, images, fine, coarse, kernel, stride, padding] = arguments;
    check(tile == 0 || tile == 2 || tile == 4, "tile", tile, "0, 2 or 4");
    check(images > 0, "images", images, "1 or more");
    for (const Image& image : {fine, coarse})
        for (std::int64_t size : image) check(size > 0, "fine, coarse", size, "1 or more");
    for (std::int64_t size : {kernel.first, kernel.second})
        check(tile == 0 ? size > 0 : size == 4, "kernel", size, tile == 0 ? "1 or more" : "4");
    for (std::int64_t step : {stride.first, stride.second})
        check(tile == 0 ? step > 0 : step == 2, "stride", step, tile == 0 ? "1 or more" : "2");
    for (std::int64_t pad : {padding.first, padding.second}) check(pad >= 0, "padding", pad, "0 or more");
    return {images,       fine[0],       fine[1],      fine[2],       coarse[0],     coarse[1],      coarse[2],
            kernel.first, kernel.second, stride.first, stride.second, padding.first, padding.second, tile};
}

// By `winograd` if there is a tile, otherwise by `patches`
template <ConvolutionPass* patches, ConvolutionPass* winograd>
void convolve(const ConvolutionArguments& arguments, Address from, Address weight, Address bias, Address out,
              std::int64_t threads) {
    const Convolution conv = convolution_of(arguments);
    (conv.tile == 0 ? patches : winograd)(
        conv, pointer<const float>("from", from), pointer<const float>("weight", weight),
        pointer<const float>("bias", bias, true), pointer<float>("out", out), threads);
}

void wgrad(const ConvolutionArguments& arguments, Address fine, Address coarse, Address out, std::int64_t threads) {
    const Convolution conv = convolution_of(arguments);
    (conv.tile == 0 ? patches_wgrad : winograd_wgrad)(conv, pointer<const float>("fine", fine),
                                                      pointer<const float>("coarse", coarse),
                                                      pointer<float>("out", out), threads);
}

}  // namespace
}  // namespace fastgan

PYBIND11_MODULE(FASTGAN_MODULE, module) {
    using namespace fastgan;
    using Free = py::call_guard<py::gil_scoped_release>;
    bind_kernels(module);
    module.def("to_coarse", &convolve<patches_to_coarse, winograd_to_coarse>, Free());
    module.def("to_fine", &convolve<patches_to_fine, winograd_to_fine>, Free());
    module.def("wgrad", &wgrad, Free());
}
