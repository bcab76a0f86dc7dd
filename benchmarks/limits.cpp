// What one core can do: vector loads and full adders per second, alone and as the bit-sliced inner
// loop combines them. Compiled by limits.py for one instruction set with the engine's own vector
// types; prints one JSON object.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "bitsliced_conv2d/cpu_kernel.h"

using namespace mpt::MPT_ISA;

namespace {

#if MPT_VECTOR_BYTES == 16
#define MPT_IN_REGISTER "r"  // Bits is one 64-bit word there
#elif MPT_VECTOR_BYTES == 64
#define MPT_IN_REGISTER "v"
#else
#define MPT_IN_REGISTER "x"
#endif

constexpr int kUnroll = 16;
constexpr int64_t kPasses = 1 << 16;  // of kUnroll operations each per sample

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Operations per second: the best of a few samples, for another process may hold the core.
template <class Body>
double rate(double operations, const Body& body) {
    double best = 0;
    for (int i = 0; i < 9; ++i) {
        const double start = now();
        body();
        const double speed = operations / (now() - start);
        if (speed > best) best = speed;
    }
    return best;
}

// A list of places in a slice as the kernels hold it: byte offsets, or, of 64-byte vectors, their
// numbers, four to a word.
struct List {
    std::vector<int32_t> offsets;
    std::vector<uint64_t> quads;

    explicit List(std::vector<int32_t> taken) : offsets(std::move(taken)) {
        for (size_t i = 0; i < offsets.size(); ++i) {
            if (i % 4 == 0) quads.push_back(0);
            quads.back() |= uint64_t(offsets[i] / int32_t(sizeof(Bits))) << (16 * (i % 4));
        }
    }
};

template <int I>
Bits load_place(const char* data, const List& list, size_t first) {
    if constexpr (kQuads)
        return load<Bits>(data + quad_offset<I>(list.quads.data() + first / 4));
    else
        return load<Bits>(data + list.offsets[first + I]);
}

template <int... I>
void load_places(const char* data, const List& list, size_t first, std::integer_sequence<int, I...>) {
    const auto take = [](Bits value) { asm volatile("" : : MPT_IN_REGISTER(value)); };
    (take(load_place<I>(data, list, first)), ...);
}

double loads(const char* data, const List& list) {
    const auto places = int64_t(list.offsets.size()), rounds = kPasses * kUnroll / places;
    return rate(double(rounds) * double(places), [&] {
        for (int64_t r = 0; r < rounds; ++r)
            for (size_t i = 0; i < size_t(places); i += kUnroll)
                load_places(data, list, i, std::make_integer_sequence<int, kUnroll>());
    });
}

// Full adders (sum and majority) on registers, in independent chains that hide their latency; the
// third operand is another register, or loaded where LOADS.
template <bool LOADS>
double adders(const char* data) {
    constexpr int kChains = MPT_VECTOR_BYTES == 64 ? 8 : 5;  // what the registers hold
    Bits a[kChains], b[kChains];
    for (int k = 0; k < kChains; ++k) {
        a[k] = splat(uint64_t(k) * 0x9e3779b97f4a7c15u);
        b[k] = splat(uint64_t(k) + 7);
    }
    const Bits other = load<Bits>(data);
    return rate(double(kPasses) * kUnroll * kChains, [&] {
        for (int64_t r = 0; r < kPasses; ++r)
#pragma GCC unroll 16
            for (int i = 0; i < kUnroll; ++i)
#pragma GCC unroll 8
                for (int k = 0; k < kChains; ++k) {
                    Bits c = other;
                    if constexpr (LOADS) {  // once, as the kernel does; the sum takes its register
                        c = load<Bits>(data + (i * kChains + k) * int(sizeof(Bits)));
                        asm volatile("" : "+" MPT_IN_REGISTER(c));
                    }
                    const Bits next = sum(a[k], b[k], c);
                    b[k] = majority(a[k], b[k], c, next);
                    a[k] = next;
                    asm volatile("" : "+" MPT_IN_REGISTER(a[k]), "+" MPT_IN_REGISTER(b[k]));
                }
    });
}

}  // namespace

int main() {
    constexpr int64_t kLargest = int64_t{2} << 20;
    char* data = static_cast<char*>(std::aligned_alloc(1 << 21, kLargest + 4096));
    memset(data, 1, size_t(kLargest + 4096));
    std::printf("{\"vector_bytes\": %d, \"adders\": %.6g, \"loads_with_adders\": %.6g, \"loads\": {",
                MPT_VECTOR_BYTES, adders<false>(data), adders<true>(data));
    uint64_t state = 1;
    for (int64_t bytes = 4096; bytes <= kLargest; bytes *= 2) {
        // Rising at random distances, as the kept taps of a channel do.
        std::vector<int32_t> offsets;
        const int64_t slots = bytes / int64_t(sizeof(Bits));
        for (int64_t at = 0; at < slots; ++at) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            if (bytes <= 16384 || state >> 63) offsets.push_back(int32_t(at * int64_t(sizeof(Bits))));
        }
        while (offsets.size() % kUnroll) offsets.push_back(0);
        std::printf("%s\"%lld\": %.6g", bytes > 4096 ? ", " : "", (long long)bytes,
                    loads(data, List(offsets)));
    }
    std::printf("}}\n");
    std::free(data);
    return 0;
}
