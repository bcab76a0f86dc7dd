#include "xnor_conv2d/cpu_layer.h"

#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace mpt {
namespace {

// Blocks whose agreements and sums fit 16 bits.
constexpr int64_t kPassGroups = INT16_MAX / (kLookupGroups * kLookupTaps) * kLookupGroups;
static_assert(kPassGroups * kLookupTaps == LookupConv::kMostSignTaps);

// The tables of every pattern of kLookupTaps signed or pruned taps, in base 3.
struct Tables {
    static constexpr int kCount = 81, kInputs = 1 << kLookupTaps;
    uint8_t counts[kCount][kInputs];
    uint8_t masks[kCount][2];      // negative taps, kept taps
    uint8_t of[kInputs][kInputs];  // by kept and positive taps

    Tables() {
        int next = 0;
        for (int kept = 0; kept < kInputs; ++kept)
            for (int positive = 0; positive < kInputs; ++positive) {
                if ((positive & kept) != positive) continue;
                for (int input = 0; input < kInputs; ++input)
                    counts[next][input] = uint8_t(popcount(~(input ^ positive) & kept));
                masks[next][0] = uint8_t(kept & ~positive);
                masks[next][1] = uint8_t(kept);
                of[kept][positive] = uint8_t(next++);
            }
    }

    static int popcount(int bits) {
        return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3 & 1);
    }
};

const Tables& tables() {
    static const Tables tables;
    return tables;
}

// Eight bits as bytes 0 and 1, the lowest first.
uint64_t spread(uint64_t bits) {
    const uint64_t own = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (own + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u;
}

// `count` <= 8 bits from bit `first` on; reads no byte that holds none of them.
uint64_t bits_at(const char* bits, int64_t first, int64_t count) {
    const int64_t within = first % 8;
    const char* from = bits + first / 8;
    const unsigned low = uint8_t(from[0]), high = within + count > 8 ? uint8_t(from[1]) : 0;
    return (low | high << 8) >> within & 255;
}

// Writes the `count` <= 8 lowest bytes.
void store_bytes(char* to, uint64_t bytes, int64_t count) {
    if (count == 8) {
        std::memcpy(to, &bytes, 8);
        return;
    }
    for (int64_t size : {4, 2, 1}) {
        if (!(count & size)) continue;
        std::memcpy(to, &bytes, size_t(size));
        bytes >>= 8 * size;
        to += size;
    }
}

}  // namespace

LookupConv::LookupConv(const Geometry& g)
    : geometry_(g),
      rows_(axis_classes(g.input.height, g.output.height, g.kernel_h, g.stride[0], g.padding[0],
                         g.dilation[0])),
      columns_(axis_classes(g.input.width, g.output.width, g.kernel_w, g.stride[1], g.padding[1],
                            g.dilation[1])) {
    const int64_t width = g.input.width + 2 * g.padding[1];
    phase_width_ = (width + g.stride[1] - 1) / g.stride[1];
    row_bytes_ = phase_width_ * g.stride[1];
    channel_bytes_ = row_bytes_ * (g.input.height + 2 * g.padding[0]);
    const int64_t groups = (g.group_size() + kLookupTaps - 1) / kLookupTaps;
    const int64_t area = g.kernel_h * g.kernel_w;
    for (int64_t i = 0; i < groups * kLookupTaps; ++i) {
        const int64_t tap = std::min(i, g.group_size() - 1);  // filled up with pruned taps
        places_.push_back(tap / area * channel_bytes_ +
                          tap % area / g.kernel_w * g.dilation[0] * row_bytes_ +
                          column_place(tap % g.kernel_w * g.dilation[1]));
    }
    for (int64_t first = 0; first < groups; first += kPassGroups) {
        Pass pass = {};
        pass.first_group = first;
        pass.tap_groups = std::min(kPassGroups, groups - first);
        const int64_t blocks = (pass.tap_groups + kLookupGroups - 1) / kLookupGroups;
        pass.runs.resize(size_t(blocks * g.output.channels));
        pass.constants.resize(size_t(g.output.channels * class_sets() * 2 * kLookupClasses));
        pass.balances.assign(size_t(area), 0);
        passes_.push_back(std::move(pass));
    }
    kept_.assign(size_t(groups) + 4, 0);  // 16 bits may reach past the last group
    positive_.assign(size_t(groups) + 4, 0);
}

// Neighbouring output pixels read neighbouring bytes: with a stride, the columns are sorted by
// their remainder.
int64_t LookupConv::column_place(int64_t x) const {
    const int64_t step = geometry_.stride[1];
    return x % step * phase_width_ + x / step;
}

void LookupConv::add_taps(int64_t first, uint32_t mask, uint32_t sign) {
    const int64_t group = first / kLookupTaps, area = geometry_.kernel_h * geometry_.kernel_w;
    const uint32_t positive = sign & mask;
    for (int64_t g = 0; g < 5; ++g) {
        const int64_t shift = kLookupTaps * g - first % kLookupTaps;
        const uint32_t kept = shift < 0 ? mask << -shift : mask >> shift;
        if (kept == 0) break;
        const uint32_t up = shift < 0 ? positive << -shift : positive >> shift;
        kept_[group + g] |= uint8_t(kept & 15);
        positive_[group + g] |= uint8_t(up & 15);
    }
    Pass& pass = passes_[size_t(group / kPassGroups)];
    for (int64_t i = 0; mask >> i != 0; ++i) {
        const int32_t is_kept = mask >> i & 1, is_positive = positive >> i & 1;
        pass.balances[(first + i) % area] += 2 * is_positive - is_kept;
        pass.negatives += is_kept - is_positive;
    }
}

void LookupConv::end_channel() {
    for (Pass& pass : passes_) end_pass(pass);
    std::fill(kept_.begin(), kept_.end(), uint8_t(0));
    std::fill(positive_.begin(), positive_.end(), uint8_t(0));
    ++ended_;
}

void LookupConv::end_pass(Pass& pass) {
    const Tables& t = tables();
    LookupRun* run = pass.runs.data() + ended_;
    for (int64_t block = 0; block < pass.tap_groups; block += kLookupGroups) {
        const int64_t count = std::min(kLookupGroups, pass.tap_groups - block);
        const uint8_t* kept = kept_.data() + pass.first_group + block;
        const uint8_t* positive = positive_.data() + pass.first_group + block;
        const int64_t used = count - std::count(kept, kept + count, 0);
        // Five instructions per lookup of a list, four where every group has one.
        run->every = used * 5 > count * 4;
        run->count = int32_t(run->every ? count : used);
        run->first = int64_t(run->every ? codes_.size() : entries_.size());
        for (int64_t g = 0; g < count; ++g) {
            const int64_t table = t.of[kept[g]][positive[g]] * Tables::kInputs;
            if (run->every)
                codes_.push_back(uint8_t(table / 8));
            else if (kept[g] != 0)
                entries_.push_back({uint16_t(g * kLookupLanes), uint16_t(table)});
        }
        run += geometry_.output.channels;
    }
    set_constants(pass);
    std::fill(pass.balances.begin(), pass.balances.end(), 0);
    pass.negatives = 0;
}

// S = 2 A - 2 negatives - (positive minus negative taps inside the image): outside, bits are 0.
void LookupConv::set_constants(Pass& pass) {
    uint8_t* own = pass.constants.data() + ended_ * class_sets() * 2 * kLookupClasses;
    int64_t index = 0;
    for (const Inside& y : rows_.classes)
        for (const Inside& x : columns_.classes) {
            int32_t constant = -2 * pass.negatives;
            for (int64_t r = y.first; r < y.last; ++r)
                for (int64_t s = x.first; s < x.last; ++s)
                    constant -= pass.balances[r * geometry_.kernel_w + s];
            uint8_t* at = own + index / kLookupClasses * 2 * kLookupClasses + index % kLookupClasses;
            at[0] = uint8_t(constant & 255);
            at[kLookupClasses] = uint8_t(constant >> 8 & 255);
            ++index;
        }
}

void LookupConv::fill_row(const char* bits, int64_t first, int64_t c, int64_t y,
                          char* image) const {
    const Geometry& g = geometry_;
    char* row = image + c * channel_bytes_ + (y + g.padding[0]) * row_bytes_;
    for (int64_t x = 0; x < g.input.width; x += 8) {
        const int64_t count = std::min<int64_t>(8, g.input.width - x);
        const uint64_t bytes = spread(bits_at(bits, first + x, count));
        if (g.stride[1] == 1) {
            store_bytes(row + g.padding[1] + x, bytes, count);
        } else {
            for (int64_t i = 0; i < count; ++i)
                row[column_place(g.padding[1] + x + i)] = char(bytes >> (8 * i) & 1);
        }
    }
}

int64_t LookupConv::scratch_bytes(int64_t threads) const {
    const int64_t counts = geometry_.output.channels * kLookupLanes * 2;
    const int64_t stage = kLookupGroups * kLookupLanes;
    return threads * (counts + (class_sets() * kLookupLanes + stage + kSlack));
}

void LookupConv::run(const KernelTable& kernels, const char* input, int64_t images,
                     const View& output, const LookupSigns* signs, int64_t threads,
                     char* scratch) const {
    const Geometry& g = geometry_;
    LookupConvTask t = {};
    t.input = input;
    t.entries = entries_.data();
    t.codes = codes_.data();
    t.tables = tables().counts[0];
    t.masks = tables().masks[0];
    t.row_classes = rows_.of.data();
    t.column_classes = columns_.of.data();
    t.column_class_count = int64_t(columns_.classes.size());
    t.class_sets = class_sets();
    t.images = images;
    t.outputs_per_group = g.outputs_per_group();
    t.image_bytes = image_bytes();
    t.group_bytes = g.group_channels * channel_bytes_;
    t.in_row_step = g.stride[0] * row_bytes_;
    t.output = output;
    if (signs) {
        t.thresholds = signs->thresholds;
        t.flips = signs->flips;
        t.residual = signs->residual;
        t.residual_step = signs->residual_step;
    }
    const int64_t pixels = images * g.output.height * g.output.width;
    const int64_t chunks = (pixels + kLookupLanes - 1) / kLookupLanes, outputs = g.output.channels;
    const int64_t parts = parts_per_row(chunks, outputs, threads);
    const auto lookup_conv = popcount_kernels_for(kernels).lookup_conv;
    for (const Pass& pass : passes_) {
        t.taps = places_.data() + pass.first_group * kLookupTaps;
        t.tap_groups = pass.tap_groups;
        t.runs = pass.runs.data();
        t.constants = pass.constants.data();
        for_each(chunks * parts, threads, [&](int64_t item, int64_t thread) {
            const int64_t part = item % parts;
            lookup_conv(t, item / parts, outputs * part / parts,
                                outputs * (part + 1) / parts, scratch + thread * scratch_bytes(1));
        });
        t.add = true;
    }
}

}  // namespace mpt
