// Convolution of +-1 by table lookups, one output pixel per byte lane.
//
// Four taps of an input make a nibble per pixel; the signs and the mask of an output channel's four
// taps name one of 3^4 tables of popcount((nibble ^ ~sign) & mask), so that one byte shuffle and one
// add count the agreements of four taps in every lane, however many of them are kept. A group whose
// taps are all pruned is not in the list. Nibbles are staged once for all output channels, in blocks
// of groups that stay in the L1 cache. 63 lookups of at most 4 fit a byte; the bytes are then added
// to 16-bit counts, even and odd lanes apart.
#pragma once

#include "cpu/lanes.h"
#include "cpu/popcount_tasks.h"

namespace mpt {
namespace MPT_ISA {

// The table of one group's taps, ready for many lookups.
#if MPT_VECTOR_BYTES == 64
typedef U8 Table;
MPT_INLINE Table load_table(const uint8_t* counts, const uint8_t*) {
    // The unmasked form warns of an uninitialised operand in gcc 11 and 12.
    return (U8)_mm512_maskz_broadcast_i32x4(__mmask16(-1), _mm_loadu_si128((const __m128i*)counts));
}
MPT_INLINE U8 look_up(Table table, U8 nibbles) {
    return (U8)_mm512_shuffle_epi8((__m512i)table, (__m512i)nibbles);
}
#elif MPT_VECTOR_BYTES == 32
typedef U8 Table;
MPT_INLINE Table load_table(const uint8_t* counts, const uint8_t*) {
    return (U8)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)counts));
}
MPT_INLINE U8 look_up(Table table, U8 nibbles) {
    return (U8)_mm256_shuffle_epi8((__m256i)table, (__m256i)nibbles);
}
#else
struct Table {
    U8 negative, kept;
};
MPT_INLINE Table load_table(const uint8_t*, const uint8_t* masks) {
    return {U8{} + masks[0], U8{} + masks[1]};
}
MPT_INLINE U8 look_up(Table table, U8 nibbles) {
    const U8 bits = (nibbles ^ table.negative) & table.kept;
    const U8 pairs = bits - (U8)(((U16)bits >> 1) & 0x0505);  // SSE2 shifts no bytes
    return (pairs & 3) + (U8)(((U16)pairs >> 2) & 0x0303);
}
#endif

// The 16-entry table's entry for every lane, 0 for index 255.
MPT_INLINE U8 look_up_any(const uint8_t* table, const uint8_t* indices) {
#if MPT_VECTOR_BYTES > 16
    return look_up(load_table(table, nullptr), load<U8>(indices));
#else
    U8 found;
    for (int i = 0; i < MPT_VECTOR_BYTES; ++i) found[i] = indices[i] < 16 ? table[indices[i]] : 0;
    return found;
#endif
}

constexpr int kByteVectors = int(kLookupLanes / MPT_VECTOR_BYTES);

// Lanes whose input, or whose output, lies side by side.
struct LookupSegment {
    const char* input;
    int32_t lane, count;
};
struct LookupTarget {
    char* output;  // of channel 0
    int32_t lane, count;
};

struct LookupChunk {
    LookupSegment segments[kLookupLanes];
    LookupTarget targets[kLookupLanes];
    int32_t segment_count, target_count, lanes;
};

// Cuts a chunk into pieces of output rows. Rows of an image may lie one behind the other.
MPT_INLINE void set_chunk(const LookupConvTask& t, int64_t chunk, LookupChunk* out) {
    const int64_t height = t.output.height, width = t.output.width;
    const int64_t total = t.images * height * width;
    int64_t pixel = chunk * kLookupLanes;
    int64_t left = total - pixel < kLookupLanes ? total - pixel : kLookupLanes;
    out->segment_count = out->target_count = 0;
    out->lanes = int32_t(left);
    const char* end = nullptr;  // of the last target
    for (int32_t lane = 0; left > 0;) {
        const int64_t x = pixel % width, y = pixel / width % height, n = pixel / width / height;
        const int32_t count = int32_t(width - x < left ? width - x : left);
        out->segments[out->segment_count++] = {
            t.input + n * t.image_bytes + y * t.in_row_step + x, lane, count};
        char* to = t.output.origin + n * t.output.group_bytes + y * t.output.row_bytes +
                   x * t.output.pixel_bytes;
        if (to == end)
            out->targets[out->target_count - 1].count += count;
        else
            out->targets[out->target_count++] = {to, lane, count};
        end = to + count * t.output.pixel_bytes;
        pixel += count;
        left -= count;
        lane += count;
    }
}

// The border class of every lane within set `set` of kLookupClasses; 255 where it is in another.
MPT_INLINE void set_classes(const LookupConvTask& t, int64_t chunk, int64_t lanes, int64_t set,
                            uint8_t* classes) {
    const int64_t height = t.output.height, width = t.output.width;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t pixel = chunk * kLookupLanes + lane;
        const int64_t row_class = t.row_classes[pixel / width % height];
        const int64_t index = row_class * t.column_class_count + t.column_classes[pixel % width];
        classes[lane] = index / kLookupClasses == set ? uint8_t(index % kLookupClasses) : 255;
    }
}

// Nibbles of one group, each segment a whole number of vectors: what a segment writes past its end
// the next one overwrites, and the next group what the last one wrote.
MPT_INLINE void stage_group(const LookupChunk& chunk, const int64_t* taps, int64_t channels,
                            char* to) {
    // Copies, because a store of chars could change what a pointer points to.
    const int64_t a = taps[0] + channels, b = taps[1] + channels, c = taps[2] + channels,
                  d = taps[3] + channels;
    const int32_t count = chunk.segment_count;
    for (int32_t s = 0; s < count; ++s) {
        const LookupSegment segment = chunk.segments[s];
        for (int32_t x = 0; x < segment.count; x += MPT_VECTOR_BYTES) {
            const char* from = segment.input + x;
            const U8 low = load<U8>(from + a) + 2 * load<U8>(from + b);
            const U8 high = load<U8>(from + c) + 2 * load<U8>(from + d);
            store(to + segment.lane + x, low + 4 * high);
        }
    }
}

// The lookups of one run; V vectors of lanes.
template <int V, bool EVERY>
static void add_lookups(const LookupConvTask& t, const LookupRun& run, const char* stage,
                        uint16_t* counts) {
    constexpr int kMost = 255 / int(kLookupTaps);
    const LookupEntry* entry = t.entries + run.first;
    const uint8_t* code = t.codes + run.first;
    for (int32_t left = run.count; left > 0; left -= kMost) {
        const int32_t now = left < kMost ? left : kMost;
        U8 sums[V] = {};
#pragma GCC unroll 4
        for (int32_t i = 0; i < now; ++i) {
            const char* in = stage;
            int64_t offset;
            if constexpr (EVERY) {
                offset = int64_t(*code++) * 8;
                stage += kLookupLanes;
            } else {
                offset = entry->table;
                in += entry->input;
                ++entry;
            }
            const Table table = load_table(t.tables + offset, t.masks + offset / 8);
            for (int v = 0; v < V; ++v)
                sums[v] += look_up(table, load<U8>(in + v * MPT_VECTOR_BYTES));
        }
        uint8_t bytes[V * MPT_VECTOR_BYTES];
        memcpy(bytes, sums, sizeof bytes);
        for (int lane = 0; lane < V * MPT_VECTOR_BYTES; ++lane)
            counts[lane] = uint16_t(counts[lane] + bytes[lane]);
    }
}

template <int V>
MPT_INLINE void add_run(const LookupConvTask& t, const LookupRun& run, const char* stage,
                        uint16_t* counts) {
    if (run.every)
        add_lookups<V, true>(t, run, stage, counts);
    else
        add_lookups<V, false>(t, run, stage, counts);
}

// Twice the agreements and the constant of every lane's class: the sums, which fit 16 bits.
MPT_INLINE void finish_sums(const LookupConvTask& t, int64_t o, int32_t lanes,
                            const uint8_t* classes, const uint16_t* counts, int32_t* sums) {
    const uint8_t* constants = t.constants + o * t.class_sets * 2 * kLookupClasses;
    for (int32_t lane = 0; lane < lanes; lane += MPT_VECTOR_BYTES) {
        U8 low = {}, high = {};
        for (int64_t set = 0; set < t.class_sets; ++set) {
            const uint8_t* table = constants + set * 2 * kLookupClasses;
            const uint8_t* indices = classes + set * kLookupLanes + lane;
            low |= look_up_any(table, indices);
            high |= look_up_any(table + kLookupClasses, indices);
        }
        uint8_t bytes[2][MPT_VECTOR_BYTES];
        store(bytes[0], low);
        store(bytes[1], high);
        for (int i = 0; i < MPT_VECTOR_BYTES; ++i)
            sums[lane + i] = int16_t(2 * counts[lane + i] + (bytes[0][i] | bytes[1][i] << 8));
    }
}

MPT_INLINE void write_sums(const LookupConvTask& t, const LookupChunk& chunk, int64_t o,
                           const int32_t* sums) {
    for (int32_t s = 0; s < chunk.target_count; ++s) {
        const LookupTarget& target = chunk.targets[s];
        char* to = target.output + o * t.output.channel_bytes;
        const int32_t* from = sums + target.lane;
        if (t.add) {
            int32_t* out = reinterpret_cast<int32_t*>(to);
            for (int32_t i = 0; i < target.count; ++i) out[i] += from[i];
        } else {
            memcpy(to, from, size_t(target.count) * sizeof *from);
        }
    }
}

// Bit i says whether sum i of 64 is at least the threshold; no sum is beyond +-32767.
MPT_INLINE uint64_t at_least(const int32_t* sums, int32_t threshold) {
    uint64_t bits = 0;
#if MPT_VECTOR_BYTES == 64
    const __m512i below = _mm512_set1_epi32(threshold);
    for (int i = 0; i < 64; i += 16) {
        const __m512i lanes = _mm512_loadu_si512(sums + i);
        bits |= uint64_t(_mm512_cmpge_epi32_mask(lanes, below)) << i;
    }
#elif MPT_VECTOR_BYTES == 32
    const __m256i below = _mm256_set1_epi32(threshold);
    for (int i = 0; i < 64; i += 8) {
        const __m256i lanes = _mm256_loadu_si256((const __m256i*)(sums + i));
        const __m256i less = _mm256_cmpgt_epi32(below, lanes);
        bits |= uint64_t(~_mm256_movemask_ps(_mm256_castsi256_ps(less)) & 255) << i;
    }
#else
    for (int i = 0; i < 64; ++i) bits |= uint64_t(sums[i] >= threshold) << i;
#endif
    return bits;
}

MPT_INLINE void write_bits(const LookupConvTask& t, int64_t chunk, int32_t lanes, int64_t o,
                           const int32_t* sums) {
    const int64_t at = chunk * kLookupLanes / 8;
    for (int32_t lane = 0; lane < lanes; lane += 64) {
        const size_t bytes = lanes - lane < 64 ? size_t(lanes - lane + 7) / 8 : 8;
        uint64_t bits = at_least(sums + lane, t.thresholds[2 * o]);
        if (t.residual) {
            uint64_t select = 0;
            memcpy(&select, t.residual + o * t.residual_step + at + lane / 8, bytes);
            const uint64_t other = at_least(sums + lane, t.thresholds[2 * o + 1]);
            bits = (select & other) | (~select & bits);
        }
        bits ^= t.flips[o];
        memcpy(t.output.origin + o * t.output.channel_bytes + at + lane / 8, &bits, bytes);
    }
}

template <int V>
static void lookup_outputs(const LookupConvTask& t, const LookupRun* runs, const char* stage,
                           int64_t begin, int64_t end, bool first, uint16_t* counts) {
    for (int64_t o = begin; o < end; ++o, counts += kLookupLanes) {
        if (first) memset(counts, 0, V * MPT_VECTOR_BYTES * sizeof *counts);
        add_run<V>(t, runs[o], stage, counts);
    }
}

static void lookup_conv(const LookupConvTask& t, int64_t chunk_index, int64_t begin, int64_t end,
                        char* scratch) {
    LookupChunk chunk;
    set_chunk(t, chunk_index, &chunk);
    uint16_t* counts = reinterpret_cast<uint16_t*>(scratch);
    scratch += (end - begin) * kLookupLanes * int64_t(sizeof *counts);
    uint8_t* classes = reinterpret_cast<uint8_t*>(scratch);
    char* stage = scratch + t.class_sets * kLookupLanes;
    for (int64_t set = 0; set < t.class_sets; ++set)
        set_classes(t, chunk_index, chunk.lanes, set, classes + set * kLookupLanes);
    const int vectors = int((chunk.lanes + MPT_VECTOR_BYTES - 1) / MPT_VECTOR_BYTES);
    for (int64_t o = begin; o < end;) {
        const int64_t group = o / t.outputs_per_group;
        int64_t last = (group + 1) * t.outputs_per_group;
        if (last > end) last = end;
        const LookupRun* runs = t.runs;
        for (int64_t block = 0; block < t.tap_groups; block += kLookupGroups) {
            const int64_t count =
                t.tap_groups - block < kLookupGroups ? t.tap_groups - block : kLookupGroups;
            for (int64_t g = 0; g < count; ++g)
                stage_group(chunk, t.taps + (block + g) * kLookupTaps, group * t.group_bytes,
                            stage + g * kLookupLanes);
            uint16_t* own = counts + (o - begin) * kLookupLanes;
            if (vectors == 1)
                lookup_outputs<1>(t, runs, stage, o, last, block == 0, own);
            else if (vectors == 2)
                lookup_outputs<2>(t, runs, stage, o, last, block == 0, own);
            else
                lookup_outputs<kByteVectors>(t, runs, stage, o, last, block == 0, own);
            runs += t.output.channels;
        }
        o = last;
    }
    int32_t sums[kLookupLanes] = {};
    for (int64_t o = begin; o < end; ++o, counts += kLookupLanes) {
        finish_sums(t, o, chunk.lanes, classes, counts, sums);
        if (t.output.kind == Kind::kBits)
            write_bits(t, chunk_index, chunk.lanes, o, sums);
        else
            write_sums(t, chunk, o, sums);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
