// Machine code made at run time: executable memory, and the instructions of AVX2 and AVX-512 that a list
// of taps is made of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mpt {

// True where this process may run code that it has written, on a system that calls functions as the
// Assembler's are called.
bool can_run_code();

// Pages that are first written and then, for good, executed; never both.
class CodePages {
   public:
    explicit CodePages(size_t bytes);  // std::bad_alloc where there are none
    ~CodePages();
    CodePages(const CodePages&) = delete;
    CodePages& operator=(const CodePages&) = delete;
    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    // Gives back what lies behind the first `bytes` and makes these executable.
    void seal(size_t bytes);

   private:
    uint8_t* data_;
    size_t bytes_;
};

// General registers by their numbers in instructions. rsp and r12 are left out: as a base they need
// another encoding.
enum class Base : uint8_t {
    kRax = 0, kRcx = 1, kRdx = 2, kRbx = 3, kRbp = 5, kRsi = 6, kRdi = 7,
    kR8 = 8, kR9 = 9, kR10 = 10, kR11 = 11, kR13 = 13, kR14 = 14, kR15 = 15,
};

// An instruction of vectors: what its encoding holds besides the operands.
struct VectorOp {
    uint8_t map, prefix, opcode;  // map 1: 0F, 2: 0F 38, 3: 0F 3A; prefix 0: none, 1: 66, 2: F3
    bool wide = false;            // W, where it matters
};

constexpr VectorOp kLoad = {1, 0, 0x10}, kStore = {1, 0, 0x11};  // of any elements, at any address
constexpr VectorOp kAddFloats = {1, 0, 0x58}, kSubFloats = {1, 0, 0x5C}, kMulFloats = {1, 0, 0x59};
constexpr VectorOp kMinFloats = {1, 0, 0x5D}, kMaxFloats = {1, 0, 0x5F};
// destination += first * second, and -=
constexpr VectorOp kMulAddFloats = {2, 1, 0xB8}, kMulSubFloats = {2, 1, 0xBC};
constexpr VectorOp kToFloats = {1, 0, 0x5B};  // from integers of 32 bits
constexpr VectorOp kToInts = {1, 1, 0x5B};    // the nearest, ties to even
constexpr VectorOp kAddShorts = {1, 1, 0xFD}, kSubShorts = {1, 1, 0xF9};
constexpr VectorOp kXor = {1, 1, 0xEF};

// Writes instructions one behind the other; the caller knows that there is room. Vectors have
// `vector_bytes`: 64 and 32 registers of AVX-512, or 32 and 16 of AVX2, where `spare` is one that
// nothing else uses. Half vectors, in memory or the lower half of a register, have half of that.
class Assembler {
   public:
    Assembler(uint8_t* at, int64_t vector_bytes, bool avx512, int spare)
        : at_(at), vector_bytes_(vector_bytes), avx512_(avx512), spare_(spare) {}
    uint8_t* at() const { return at_; }
    // A memory operand's distance costs one byte where this is true, four otherwise.
    bool is_near(int64_t distance) const { return is_near(distance, unit(vector_bytes_)); }

    void operate(const VectorOp& op, int to, int first, int second);
    void operate(const VectorOp& op, int to, int first, Base base, int64_t distance);
    // The same with one float in all lanes of the second operand, at `constant`.
    void operate_with_float(const VectorOp& op, int to, int first, const uint8_t* constant);
    // to = any function of `to` and two operands, bit by bit, by its truth table, whose entry 4a + 2b + c
    // is of bits a, b and c; the second may be one word in all lanes, from memory. AVX-512 alone.
    void combine(uint8_t table, int to, int first, int second);
    void combine_with_word(uint8_t table, int to, int first, Base base, int64_t distance);
    // Of one operand.
    void convert(const VectorOp& op, int to, int from) { operate(op, to, 0, from); }
    void move(const VectorOp& op, int vector, Base base, int64_t distance) {
        operate(op, vector, 0, base, distance);
    }
    void set_ones(int vector);                           // 1.0f in all lanes
    void spread_float(int to, const uint8_t* constant);  // the one float at `constant`
    void spread_word(int to, Base base, int64_t distance);  // any 32 bits
    // Half a vector of 16-bit integers to a whole one of 32-bit ones, and back.
    void widen_shorts(int to, int from);
    void widen_shorts(int to, Base base, int64_t distance);
    void store_shorts(int vector, Base base, int64_t distance);  // which changes; they fit 16 bits
    void upper_half(int to, int from);

    void add(Base to, Base from);
    void add(Base to, int32_t value);
    void load_address(Base to, Base base, int64_t distance);
    void push(Base base);
    void pop(Base base);
    void begin_function();  // a function that jumps may lead to
    // Jumps to where land() is called with what this returns, if `value` and a register's lower half have a
    // bit in common.
    uint8_t* jump_if_any(Base base, int32_t value);
    void land(uint8_t* jump);
    void leave();           // no vector in use; return
    void align(int64_t bytes);
    void skip(int64_t bytes) { at_ += bytes; }
    void write(const float* values, int64_t count);

   private:
    static bool is_near(int64_t distance, int64_t unit) {
        return distance % unit == 0 && distance >= -128 * unit && distance <= 127 * unit;
    }
    // What a short distance to an operand of so many bytes is counted in.
    int64_t unit(int64_t bytes) const { return avx512_ ? bytes : 1; }
    void byte(int64_t value) { *at_++ = uint8_t(value); }
    void word(int32_t value);
    void prefix(const VectorOp& op, int to, int first, int rm, bool half = false,
                bool broadcast = false);
    void registers(int to, int rm) { byte(0xC0 | (to & 7) << 3 | (rm & 7)); }
    void memory(int to, Base base, int64_t distance, int64_t bytes);
    void constant_operand(int to, const uint8_t* constant);
    void shift(int direction, int vector, int bits);

    uint8_t* at_;
    const int64_t vector_bytes_;
    const bool avx512_;
    const int spare_;
};

}  // namespace mpt
