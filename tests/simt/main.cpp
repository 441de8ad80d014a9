// Calls row kernels until the input ends. It reads name and arguments from the standard input, and after the call
// writes the memory of the pointers and a '.' to the standard output. tests/simt/__init__.py is the other side.
//
//     seed, length of the name, the name, then each argument:
//     'i' int64   'd' double   'p' bytes beyond a multiple of 16, length, that many bytes   'n' a null pointer
//     's' number of an earlier pointer of the call, counted from 0: the same memory
//
// Each other pointer has separate memory of exactly that length, so that AddressSanitizer detects accesses beyond it.
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "fastgan/kernels.h"
#include "simt.h"

namespace {

using namespace fastgan;

template <typename T>
T take() {
    T value;
    if (std::fread(&value, sizeof(T), 1, stdin) != 1) simt::fail("the input ends early");
    return value;
}

struct Buffer {
    std::unique_ptr<char, void (*)(void*)> memory;
    std::size_t offset, size;
};

std::vector<Buffer> buffers;

void* take_pointer() {
    const char tag = take<char>();
    if (tag == 'n') return nullptr;
    if (tag == 's') {
        const Buffer& buffer = buffers.at(take<std::int64_t>());
        return buffer.memory.get() + buffer.offset;
    }
    if (tag != 'p') simt::fail("expected a pointer");
    const auto offset = take<std::int64_t>(), size = take<std::int64_t>();
    char* memory = static_cast<char*>(std::malloc(offset + size));  // aligned to 16
    buffers.push_back({{memory, std::free}, static_cast<std::size_t>(offset), static_cast<std::size_t>(size)});
    if (size > 0 && std::fread(memory + offset, size, 1, stdin) != 1) simt::fail("the input ends early");
    return memory + offset;
}

template <typename T>
struct Argument {
    static T get() {
        if constexpr (std::is_pointer_v<T>) {
            return static_cast<T>(take_pointer());
        } else {
            const char tag = take<char>();
            if (tag != (std::is_floating_point_v<T> ? 'd' : 'i')) simt::fail("expected a number of another kind");
            return std::is_floating_point_v<T> ? static_cast<T>(take<double>()) : static_cast<T>(take<std::int64_t>());
        }
    }
};

template <typename T>
T argument() {
    return Argument<T>::get();
}

// Initializer lists in braces are evaluated in order.
template <>
struct Argument<Shape> {
    static Shape get() {
        return {argument<std::int64_t>(), argument<std::int64_t>(), argument<std::int64_t>(), argument<DType>()};
    }
};

template <>
struct Argument<Normalization> {
    static Normalization get() {
        return {argument<float*>(), argument<float*>(), argument<float*>(), argument<Activation>(), argument<float>()};
    }
};

template <>
struct Argument<RunningStats> {
    static RunningStats get() {
        return {argument<float*>(), argument<float*>(), argument<std::int64_t*>(), argument<float>()};
    }
};

template <>
struct Argument<Workspace> {
    static Workspace get() { return {argument<std::int64_t>(), argument<float*>(), argument<unsigned*>()}; }
};

template <typename... Parameters>
std::function<void()> call(void (*function)(Parameters...)) {
    return [function] {
        std::tuple<std::decay_t<Parameters>...> arguments{argument<std::decay_t<Parameters>>()...};
        std::apply(function, arguments);
    };
}

const std::map<std::string, std::function<void()>> calls = {
    {"batch_stats", call(batch_stats)},
    {"bn_act_forward", call(bn_act_forward)},
    {"bn_backward_sums", call(bn_backward_sums)},
    {"bn_backward_apply", call(bn_backward_apply)},
};

}  // namespace

int main() {
    for (int next; (next = std::getchar()) != EOF;) {
        std::ungetc(next, stdin);
        simt::seed(take<std::int64_t>());
        std::string name(take<std::int64_t>(), 0);
        for (char& letter : name) letter = take<char>();
        calls.at(name)();
        for (const Buffer& buffer : buffers) std::fwrite(buffer.memory.get() + buffer.offset, 1, buffer.size, stdout);
        buffers.clear();
        std::putchar('.');
        std::fflush(stdout);
    }
}
