#include "cpu/machine_code.h"

#include <cstring>
#include <initializer_list>
#include <new>

#if (defined(__x86_64__)) && (defined(__linux__) || defined(__APPLE__))
#define MPT_CODE 1
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mpt {

#ifdef MPT_CODE

CodePages::CodePages(size_t bytes) {
    const auto page = size_t(sysconf(_SC_PAGESIZE));
    bytes_ = (bytes + page) / page * page;
    void* const pages =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(pages);
}

CodePages::~CodePages() { munmap(data_, bytes_); }

void CodePages::seal(size_t bytes) {
    const auto page = size_t(sysconf(_SC_PAGESIZE));
    const size_t kept = (bytes + page) / page * page;
    if (kept < bytes_) {
        munmap(data_ + kept, bytes_ - kept);
        bytes_ = kept;
    }
    if (mprotect(data_, bytes_, PROT_READ | PROT_EXEC) != 0) throw std::bad_alloc();
}

bool can_run_code() {
    static const bool can = [] {
        try {
            CodePages pages(1);
            Assembler code(pages.data(), 32, false, 0);
            code.begin_function();
            code.add(Base::kRdi, 42);
            code.load_address(Base::kRax, Base::kRdi, 0);
            code.leave();
            pages.seal(size_t(code.at() - pages.data()));
            int64_t (*function)(int64_t);
            uint8_t* const start = pages.data();
            std::memcpy(&function, &start, sizeof function);
            return function(1) == 43;
        } catch (const std::bad_alloc&) {  // a system that lets no program write its own code
            return false;
        }
    }();
    return can;
}

#else

CodePages::CodePages(size_t) { throw std::bad_alloc(); }
CodePages::~CodePages() {}
void CodePages::seal(size_t) {}
bool can_run_code() { return false; }

#endif

void Assembler::word(int32_t value) {
    std::memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
}

// EVEX of AVX-512, VEX of AVX2, up to the opcode. rm: the register that is the second operand, or a base.
// half: 16 or 32 bytes.
void Assembler::prefix(const VectorOp& op, int to, int first, int rm, bool half, bool broadcast) {
    const int high = (to & 8 ? 0 : 0x80) | (rm & 16 ? 0 : 0x40) | (rm & 8 ? 0 : 0x20);
    const int wide = op.wide ? 0x80 : 0, other = (~first & 15) << 3;
    if (avx512_) {
        const bool whole = (vector_bytes_ == 64) != half;
        byte(0x62);
        byte(high | (to & 16 ? 0 : 0x10) | op.map);
        byte(wide | other | 4 | op.prefix);
        byte((whole ? 0x40 : 0x20) | (broadcast ? 0x10 : 0) | (first & 16 ? 0 : 8));
    } else if (op.map == 1 && !op.wide && !(rm & 8)) {
        byte(0xC5);
        byte((to & 8 ? 0 : 0x80) | other | (half ? 0 : 4) | op.prefix);
    } else {
        byte(0xC4);
        byte(high | op.map);
        byte(wide | other | (half ? 0 : 4) | op.prefix);
    }
    byte(op.opcode);
}

void Assembler::operate(const VectorOp& op, int to, int first, int second) {
    prefix(op, to, first, second);
    registers(to, second);
}

void Assembler::operate(const VectorOp& op, int to, int first, Base base, int64_t distance) {
    prefix(op, to, first, int(base));
    memory(to, base, distance, vector_bytes_);
}

// An operand of so many bytes.
void Assembler::memory(int to, Base base, int64_t distance, int64_t bytes) {
    const bool near = is_near(distance, unit(bytes));
    byte((near ? 0x40 : 0x80) | (to & 7) << 3 | (int(base) & 7));
    if (near)
        byte(distance / unit(bytes));
    else
        word(int32_t(distance));
}

void Assembler::widen_shorts(int to, int from) { operate({2, 1, 0x23}, to, 0, from); }

void Assembler::widen_shorts(int to, Base base, int64_t distance) {
    prefix({2, 1, 0x23}, to, 0, int(base));
    memory(to, base, distance, vector_bytes_ / 2);
}

void Assembler::upper_half(int to, int from) {
    operate(vector_bytes_ == 64 ? VectorOp{3, 1, 0x3B, true} : VectorOp{3, 1, 0x39}, from, 0, to);
    byte(1);
}

void Assembler::store_shorts(int vector, Base base, int64_t distance) {
    if (avx512_) {
        prefix({2, 2, 0x33}, vector, 0, int(base));
    } else {  // pack the halves
        constexpr VectorOp kPack = {1, 1, 0x6B};
        upper_half(spare_, vector);
        prefix(kPack, vector, vector, spare_, true);
        registers(vector, spare_);
        prefix(kStore, vector, 0, int(base), true);
    }
    memory(vector, base, distance, vector_bytes_ / 2);
}

void Assembler::operate_with_float(const VectorOp& op, int to, int first,
                                   const uint8_t* constant) {
    if (avx512_) {
        prefix(op, to, first, 0, false, true);
        constant_operand(to, constant);
        return;
    }
    spread_float(spare_, constant);
    operate(op, to, first, spare_);
}

void Assembler::spread_float(int to, const uint8_t* constant) {
    prefix({2, 1, 0x18}, to, 0, 0);
    constant_operand(to, constant);
}

void Assembler::spread_word(int to, Base base, int64_t distance) {
    prefix({2, 1, 0x18}, to, 0, int(base));
    memory(to, base, distance, sizeof(int32_t));
}

constexpr VectorOp kAnyFunction = {3, 1, 0x25};

void Assembler::combine(uint8_t table, int to, int first, int second) {
    operate(kAnyFunction, to, first, second);
    byte(table);
}

void Assembler::combine_with_word(uint8_t table, int to, int first, Base base, int64_t distance) {
    prefix(kAnyFunction, to, first, int(base), false, true);
    memory(to, base, distance, sizeof(int32_t));
    byte(table);
}

void Assembler::constant_operand(int to, const uint8_t* constant) {
    byte((to & 7) << 3 | 5);  // relative to the next instruction
    word(int32_t(constant - (at_ + 4)));
}

void Assembler::write(const float* values, int64_t count) {
    std::memcpy(at_, values, size_t(count) * sizeof(float));
    at_ += size_t(count) * sizeof(float);
}

// direction: what the field of the missing operand holds.
void Assembler::shift(int direction, int vector, int bits) {
    prefix({1, 1, 0x72}, direction, vector, vector);
    registers(direction, vector);
    byte(bits);
}

void Assembler::set_ones(int vector) {
    if (avx512_) {
        combine(0xFF, vector, vector, vector);
    } else {
        operate({1, 1, 0x76}, vector, vector, vector);  // equal
    }
    shift(6, vector, 25);  // left
    shift(2, vector, 2);   // right
}

void Assembler::add(Base to, Base from) {
    byte(0x48 | (int(from) >= 8 ? 4 : 0) | (int(to) >= 8 ? 1 : 0));
    byte(0x01);
    registers(int(from), int(to));
}

void Assembler::add(Base to, int32_t value) {
    byte(0x48 | (int(to) >= 8 ? 1 : 0));
    byte(0x81);
    registers(0, int(to));
    word(value);
}

void Assembler::load_address(Base to, Base base, int64_t distance) {
    byte(0x48 | (int(to) >= 8 ? 4 : 0) | (int(base) >= 8 ? 1 : 0));
    byte(0x8D);
    byte(0x80 | (int(to) & 7) << 3 | (int(base) & 7));
    word(int32_t(distance));
}

void Assembler::push(Base base) {
    if (int(base) >= 8) byte(0x41);
    byte(0x50 | (int(base) & 7));
}

void Assembler::pop(Base base) {
    if (int(base) >= 8) byte(0x41);
    byte(0x58 | (int(base) & 7));
}

void Assembler::begin_function() {
    for (int value : {0xF3, 0x0F, 0x1E, 0xFA}) byte(value);  // endbr64
}

uint8_t* Assembler::jump_if_any(Base base, int32_t value) {
    if (int(base) >= 8) byte(0x41);
    byte(0xF7);  // test
    registers(0, int(base));
    word(value);
    byte(0x0F);  // unless zero
    byte(0x85);
    word(0);
    return at_;
}

void Assembler::land(uint8_t* jump) {
    const auto distance = int32_t(at_ - jump);
    std::memcpy(jump - sizeof distance, &distance, sizeof distance);
}

void Assembler::leave() {
    for (int value : {0xC5, 0xF8, 0x77, 0xC3}) byte(value);  // vzeroupper, ret
}

void Assembler::align(int64_t bytes) {
    while (reinterpret_cast<uintptr_t>(at_) % uintptr_t(bytes) != 0) byte(0xCC);
}

}  // namespace mpt
