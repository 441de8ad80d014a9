// `fastgan._cpu`: the kernels of the best instruction set that was compiled and that this processor has; FASTGAN_ISA in
// the environment names another.
#include <pybind11/stl.h>

#ifdef FASTGAN_X86
#include <cpuid.h>
#endif

#include <array>
#include <cstdlib>
#include <utility>
#include <vector>

#include "fastgan/bindings.h"
#include "kernels.h"

namespace fastgan {
namespace {

#ifdef FASTGAN_X86
bool has_f16c() {  // clang's __builtin_cpu_supports does not know it
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}
#endif

std::vector<const Kernels*> usable() {  // the best first
    std::vector<const Kernels*> tables;
#ifdef FASTGAN_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        tables.push_back(&avx512::kernels);
    if (avx2) tables.push_back(&avx2::kernels);
#endif
    tables.push_back(&portable::kernels);
    return tables;
}

const Kernels* chosen = nullptr;

const RowKernels& rows() { return chosen->rows; }

std::string names() {
    std::string all;
    for (const Kernels* table : usable()) all += (all.empty() ? "" : ", ") + std::string(table->isa);
    return all;
}

void use(const std::string& isa) {
    for (const Kernels* table : usable()) {
        if (isa == table->isa) {
            chosen = table;
            return;
        }
    }
    throw std::invalid_argument("isa " + isa + ": this processor and this build have " + names());
}

Images images_of(int dtype, std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t channels) {
    check(count >= 0, "count", count, "0 or more");
    check(height > 0, "height", height, "1 or more");
    check(width > 0, "width", width, "1 or more");
    check(channels > 0, "channels", channels, "1 or more");
    return {count, height, width, channels, dtype_of(dtype)};
}

using Pair = std::pair<std::int64_t, std::int64_t>;

Window window_of(Pair kernel, Pair stride, Pair padding, Pair size) {
    for (std::int64_t side : {kernel.first, kernel.second}) check(side > 0, "kernel", side, "1 or more");
    for (std::int64_t step : {stride.first, stride.second}) check(step > 0, "stride", step, "1 or more");
    for (std::int64_t pad : {padding.first, padding.second}) check(pad >= 0, "padding", pad, "0 or more");
    for (std::int64_t side : {size.first, size.second}) check(side > 0, "size", side, "1 or more");
    return {kernel.first,   kernel.second,  stride.first, stride.second,
            padding.first, padding.second, size.first,   size.second};
}

void gather(Address x, int dtype, std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t channels,
            Pair kernel, Pair stride, Pair padding, Pair size, std::int64_t first, std::int64_t images, Address out,
            std::int64_t queue) {
    const Images fine = images_of(dtype, count, height, width, channels);
    check(first >= 0 && first <= count, "first", first, "0 to " + std::to_string(count));
    check(images >= 0 && images <= count - first, "images", images, "0 to " + std::to_string(count - first));
    chosen->gather(fine, pointer<const void>("x", x, size_of(fine.dtype), images == 0),
                   window_of(kernel, stride, padding, size), first, images,
                   pointer<void>("out", out, size_of(fine.dtype), images == 0), queue);
}

void scatter(Address patches, int dtype, std::int64_t count, std::int64_t height, std::int64_t width,
             std::int64_t channels, Address bias, Pair kernel, Pair stride, Pair padding, Pair size, Address out,
             std::int64_t queue) {
    const Images fine = images_of(dtype, count, height, width, channels);
    chosen->scatter(fine, pointer<const void>("patches", patches, size_of(fine.dtype), count == 0),
                    pointer<const float>("bias", bias, true), window_of(kernel, stride, padding, size),
                    pointer<void>("out", out, size_of(fine.dtype), count == 0), queue);
}

using Whole = std::array<std::int64_t, 3>;  // height, width, channels

Polyphase polyphase_of(int tile, std::int64_t images, Whole fine, Whole coarse, Pair padding) {
    check(tile == 2 || tile == 4, "tile", tile, "2 or 4");
    check(images > 0, "images", images, "1 or more");
    for (const Whole& whole : {fine, coarse})
        for (std::int64_t side : whole) check(side > 0, "fine, coarse", side, "1 or more");
    for (std::int64_t pad : {padding.first, padding.second}) check(pad >= 0, "padding", pad, "0 or more");
    return {images, fine[0], fine[1], fine[2], coarse[0], coarse[1], coarse[2], padding.first, padding.second};
}

Images narrow_images(std::int64_t count, const Whole& fine, std::int64_t coarse) {
    check(coarse > 0, "coarse", coarse, "1 or more");
    return images_of(static_cast<int>(DType::float32), count, fine[0], fine[1], fine[2]);
}

template <PatchesPass* Kernels::*pass>
void patches(std::int64_t count, Whole fine, std::int64_t coarse, Address x, Pair kernel, Pair stride, Pair padding,
             Pair size, Address weight, Address bias, Address out, std::int64_t queue) {
    (chosen->*pass)(narrow_images(count, fine, coarse), pointer<const float>("x", x, count == 0),
                    window_of(kernel, stride, padding, size), pointer<const float>("weight", weight),
                    pointer<const float>("bias", bias, true), coarse, pointer<float>("out", out, count == 0), queue);
}

void patches_wgrad(std::int64_t count, Whole fine, std::int64_t coarse, Address x, Address coarse_image, Pair kernel,
                   Pair stride, Pair padding, Pair size, Address out, std::int64_t queue) {
    chosen->patches_wgrad(narrow_images(count, fine, coarse), pointer<const float>("x", x, count == 0),
                          pointer<const float>("coarse_image", coarse_image, count == 0),
                          window_of(kernel, stride, padding, size), coarse, pointer<float>("out", out), queue);
}

template <WinogradPass* Kernels::*pass>
void winograd(int tile, std::int64_t images, Whole fine, Whole coarse, Pair padding, Address x, Address weight,
              Address bias, Address out, std::int64_t queue) {
    (chosen->*pass)(polyphase_of(tile, images, fine, coarse, padding), tile, pointer<const float>("x", x),
                    pointer<const float>("weight", weight), pointer<const float>("bias", bias, true),
                    pointer<float>("out", out), queue);
}

void winograd_wgrad(int tile, std::int64_t images, Whole fine, Whole coarse, Pair padding, Address fine_image,
                    Address coarse_image, Address out, std::int64_t queue) {
    chosen->winograd_wgrad(polyphase_of(tile, images, fine, coarse, padding), tile,
                           pointer<const float>("fine", fine_image), pointer<const float>("coarse", coarse_image),
                           pointer<float>("out", out), queue);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    const char* asked = std::getenv("FASTGAN_ISA");
    if (asked != nullptr && *asked != 0) {
        try {
            use(asked);
        } catch (const std::invalid_argument& error) {
            throw py::import_error(std::string("FASTGAN_ISA in the environment: ") + error.what());
        }
    } else {
        chosen = usable().front();
    }
    module.def("isa", [] { return chosen->isa; }, "the instruction set whose kernels run");
    module.def("isas", [] {
        std::vector<std::string> all;
        for (const Kernels* table : usable()) all.emplace_back(table->isa);
        return all;
    }, "those that could, the best first");
    module.def("use", &use, "run those of another instruction set from now on");
    bind_rows(module, &rows);
    module.def("gather", &gather, py::call_guard<py::gil_scoped_release>());
    module.def("scatter", &scatter, py::call_guard<py::gil_scoped_release>());
    module.def("patches_to_coarse", &patches<&Kernels::patches_to_coarse>, py::call_guard<py::gil_scoped_release>());
    module.def("patches_to_fine", &patches<&Kernels::patches_to_fine>, py::call_guard<py::gil_scoped_release>());
    module.def("patches_wgrad", &patches_wgrad, py::call_guard<py::gil_scoped_release>());
    module.def("winograd_gather", &winograd<&Kernels::winograd_gather>, py::call_guard<py::gil_scoped_release>());
    module.def("winograd_scatter", &winograd<&Kernels::winograd_scatter>, py::call_guard<py::gil_scoped_release>());
    module.def("winograd_wgrad", &winograd_wgrad, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastgan
