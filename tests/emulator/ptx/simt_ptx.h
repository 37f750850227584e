// SPDX-License-Identifier: Apache-2.0
// What the C++ that writer.py makes of PTX is written in: PTX's types, its arithmetic where C++ has
// none of the same meaning, and memory accesses that the checker sees. Section numbers are those of
// NVIDIA's PTX ISA 9.0.
#pragma once

#include "simt.h"

namespace ptx {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps every bit");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- integers

template <class T>
constexpr u32 kBits = 8 * sizeof(T);

template <class T>
using Unsigned = typename std::make_unsigned<T>::type;

// 9.7.1: what divides by 0, or overflows, gives an unspecified value and no trap.
template <class T>
inline T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed<T>::value && b == static_cast<T>(-1))
    return static_cast<T>(0 - Unsigned<T>(a));
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  return std::is_signed<T>::value && b == static_cast<T>(-1) ? T{0} : static_cast<T>(a % b);
}
template <class T>
inline T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T maximum(T a, T b) {
  return a < b ? b : a;
}

// A shift by the type's width or more leaves nothing but sign bits.
template <class T>
inline T shift_left(T x, u32 n) {
  return n < kBits<T> ? static_cast<T>(u64{x} << n) : T{0};
}
template <class T>
inline T shift_right(T x, u32 n) {
  if (n >= kBits<T>) return x < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(x >> n);
}

inline u32 leading_zeros(u32 x) { return x != 0 ? static_cast<u32>(__builtin_clz(x)) : 32; }
inline u32 leading_zeros(u64 x) { return x != 0 ? static_cast<u32>(__builtin_clzll(x)) : 64; }
inline u32 population(u32 x) { return static_cast<u32>(__builtin_popcount(x)); }
inline u32 population(u64 x) { return static_cast<u32>(__builtin_popcountll(x)); }
inline u32 reversed(u32 x) { return __brev(x); }
inline u64 reversed(u64 x) { return __brevll(x); }
// 9.7.1.20: of unsigned numbers; all ones if no bit is set.
template <class T>
inline u32 highest_bit(T x) {
  return x != 0 ? kBits<T> - 1 - leading_zeros(x) : ~0u;
}
template <class T>
inline u32 shift_to_highest_bit(T x) {
  return x != 0 ? leading_zeros(x) : ~0u;
}

// 9.7.1.21, 9.7.1.22: position and length are the lowest 8 bits of their operands.
template <class T>
inline T low_mask(u32 length) {
  return length >= kBits<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
}
template <class T>
inline T extract_field(T x, u32 position, u32 length) {
  typedef Unsigned<T> U;
  position &= 255;
  length &= 255;
  const U field = shift_right(static_cast<U>(x), position) & low_mask<U>(length);
  if (!std::is_signed<T>::value || length == 0) return static_cast<T>(field);
  const u32 last = position + length - 1 < kBits<T> ? position + length - 1 : kBits<T> - 1;
  const bool negative = (static_cast<U>(x) >> last & 1) != 0;
  return static_cast<T>(negative ? field | ~low_mask<U>(last < position ? 0 : last - position + 1)
                                 : field);
}
template <class T>
inline T insert_field(T field, T into, u32 position, u32 length) {
  position &= 255;
  const T mask = shift_left(low_mask<T>(length & 255), position);
  return static_cast<T>((into & ~mask) | (shift_left(field, position) & mask));
}
inline u32 permute(u32 a, u32 b, u32 selector) {
  const u64 all = u64{b} << 32 | a;
  u32 result = 0;
  for (u32 i = 0; i < 4; i++) {
    const u32 choice = selector >> (4 * i) & 15;
    u32 byte = static_cast<u32>(all >> (8 * (choice & 7))) & 255;
    if ((choice & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline u32 funnel_left(u32 low, u32 high, u32 n) {
  return n >= 32 ? low : static_cast<u32>((u64{high} << 32 | low) << n >> 32);
}
inline u32 funnel_right(u32 low, u32 high, u32 n) {
  return n >= 32 ? high : static_cast<u32>((u64{high} << 32 | low) >> n);
}

inline u64 high_product(u64 a, u64 b) {
  return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline s64 high_product(s64 a, s64 b) {
  return static_cast<s64>(static_cast<__int128>(a) * b >> 64);
}
inline u32 high_product(u32 a, u32 b) { return static_cast<u32>(u64{a} * b >> 32); }
inline s32 high_product(s32 a, s32 b) { return static_cast<s32>(s64{a} * b >> 32); }

// a + b + carry; the new carry is returned in `carry`.
template <class T>
inline T add_with_carry(T a, T b, bool& carry) {
  const unsigned __int128 sum = static_cast<unsigned __int128>(a) + b + (carry ? 1 : 0);
  carry = (sum >> kBits<T>) != 0;
  return static_cast<T>(sum);
}
// a - b - borrow.
template <class T>
inline T subtract_with_borrow(T a, T b, bool& borrow) {
  const unsigned __int128 difference = static_cast<unsigned __int128>(a) - b - (borrow ? 1 : 0);
  borrow = (difference >> kBits<T>) != 0;
  return static_cast<T>(difference);
}

// ---- floating point

// 9.7.3: in single precision every NaN that an instruction makes is this one.
inline f32 canonical(f32 x) { return x == x ? x : bits<f32>(0x7fffffffu); }
inline f64 canonical(f64 x) { return x; }

// A NaN loses against a number; -0 is below +0.
template <class T>
inline T float_minimum(T a, T b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return a < b || (a == b && signbit(a)) ? a : b;
}
template <class T>
inline T float_maximum(T a, T b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return a > b || (a == b && !signbit(a)) ? a : b;
}
template <class T>
inline T saturated(T x) {
  return x > 0 ? (x < 1 ? x : T{1}) : T{0};
}
template <class T>
inline bool unordered(T a, T b) {
  return a != a || b != b;
}

enum Rounding { kTowardsZero, kDown, kUp };

// a + b as a float, rounded in one direction. The sum of two doubles is s + rest, exactly; a float
// next to s is found first.
inline f32 directed_sum(f64 a, f64 b, Rounding rounding) {
  const f64 s = a + b;
  if (!(s - s == 0)) return canonical(static_cast<f32>(s));
  const f64 of_b = s - a, rest = (a - (s - of_b)) + (b - of_b);
  if (s == 0) {  // then the rest is 0, too
    const bool both_negative = signbit(a) && signbit(b), same_sign = signbit(a) == signbit(b);
    return both_negative || (rounding == kDown && !same_sign) ? -0.0f : 0.0f;
  }
  const f32 nearest = static_cast<f32>(s);
  const bool down = rounding == kDown || (rounding == kTowardsZero && s > 0);
  const bool above = nearest > s || (nearest == s && rest < 0);
  const bool below = nearest < s || (nearest == s && rest > 0);
  if (down) return above ? nextafterf(nearest, -INFINITY) : nearest;
  return below ? nextafterf(nearest, INFINITY) : nearest;
}
inline f32 directed_fma(f32 a, f32 b, f32 c, Rounding rounding) {
  return directed_sum(f64{a} * b, c, rounding);
}

// 9.7.9.22: out of range saturates. A NaN becomes 0, or 2^63 where one of the types has 64 bits.
template <class T, class F>
inline T to_integer(F x) {
  constexpr T lowest = std::is_signed<T>::value ? static_cast<T>(u64{1} << (kBits<T> - 1)) : T{0};
  constexpr T highest = static_cast<T>(~lowest);
  if (x != x) {
    return sizeof(T) == 8 || sizeof(F) == 8 ? static_cast<T>(u64{1} << (kBits<T> - 1)) : T{0};
  }
  if (x <= static_cast<F>(lowest)) return lowest;
  if (x >= static_cast<F>(highest)) return highest;
  return static_cast<T>(x);
}

// 16-bit formats, rounded to nearest even; the only NaN is 0x7fff.
inline u16 to_bf16(f32 x) {
  if (x != x) return 0x7fff;
  const u32 u = bits<u32>(x);
  return static_cast<u16>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline f32 from_bf16(u16 x) { return canonical(bits<f32>(u32{x} << 16)); }
inline u16 to_f16(f32 x) {
  if (x != x) return 0x7fff;
  const u32 sign = bits<u32>(x) >> 16 & 0x8000u;
  const f32 magnitude = fabsf(x);
  if (magnitude >= 65520.0f) return static_cast<u16>(sign | 0x7c00);
  if (magnitude < 0x1p-14f) {  // a multiple of 2^-24: the sum rounds to one
    return static_cast<u16>(sign | (bits<u32>(magnitude + 0.5f) - bits<u32>(0.5f)));
  }
  const u32 u = bits<u32>(magnitude);
  return static_cast<u16>(sign | ((u + 0xfff + (u >> 13 & 1)) - (112u << 23)) >> 13);
}
inline f32 from_f16(u16 x) {
  const u32 exponent = x >> 10 & 31, fraction = x & 0x3ff;
  f32 magnitude;
  if (exponent == 31) {
    if (fraction != 0) return bits<f32>(0x7fffffffu);
    magnitude = INFINITY;
  } else if (exponent == 0) {
    magnitude = static_cast<f32>(fraction) * 0x1p-24f;
  } else {
    magnitude = bits<f32>((exponent + 112) << 23 | fraction << 13);
  }
  return (x & 0x8000) != 0 ? -magnitude : magnitude;
}

// ---- memory

#if defined(EMULATOR_RECORDING)
#define PTX_READ(address, bytes) emulator_record_plain(address, bytes, kAccessRead)
#define PTX_WRITE(address, bytes) emulator_record_plain(address, bytes, kAccessWrite)
#else
#define PTX_READ(address, bytes)
#define PTX_WRITE(address, bytes)
#endif

// Addresses in the shared window: each variable lies in the middle of 1 MiB of its own, so that an
// index out of range ends in the red zones around it.
constexpr u32 kWindowBytes = 1u << 20;
constexpr u32 kWindowMiddle = kWindowBytes / 2;

struct SharedWindow {
  char* const* variables;
  u32 num_variables;
};

__attribute__((noinline)) inline char* shared(const SharedWindow& window, u32 address) {
  const u32 number = address / kWindowBytes;
  // An address of no variable: the checker reports that it was never allocated.
  if (number >= window.num_variables) return reinterpret_cast<char*>(u64{address});
  return window.variables[number] + static_cast<s32>(address % kWindowBytes - kWindowMiddle);
}

// The other way: where in the window a pointer into a variable lies.
__attribute__((noinline)) inline u32 window_address(const SharedWindow& window, u64 pointer,
                                                    const char* file, int line) {
  u64 least = kWindowMiddle;
  u32 found = 0;
  for (u32 i = 0; i < window.num_variables; i++) {
    const u64 offset = pointer - reinterpret_cast<u64>(window.variables[i]);
    if (offset >= least) continue;
    least = offset;
    found = i * kWindowBytes + kWindowMiddle + static_cast<u32>(offset);
  }
  if (least == kWindowMiddle) emulator_trap(file, line);
  return found;
}

template <class T>
inline T increment(T old, T limit) {
  return old >= limit ? 0 : old + 1;
}
template <class T>
inline T decrement(T old, T limit) {
  return old == 0 || old > limit ? limit : old - 1;
}

// ---- warps

struct Shuffled {
  u32 value;
  bool in_range;
};

// 9.7.9.6: c holds the mask of segments and the limit within one; out of range, a lane gets its
// own.
#define PTX_SHUFFLE(name, source_expression, in_range_expression)                            \
  inline Shuffled name(u32 value, u32 b, u32 c, u32 mask, const char* file, int line) {      \
    const int lane = emulator::lane(), segments = c >> 8 & 31, clamp = c & 31;               \
    const int first = lane & segments, limit = first | (clamp & ~segments);                  \
    const int source = source_expression;                                                    \
    const bool in_range = in_range_expression;                                               \
    (void)first;                                                                             \
    return {emulator::shuffle(mask, value, in_range ? source : lane, file, line), in_range}; \
  }
PTX_SHUFFLE(shuffle_up, lane - static_cast<int>(b & 31), source >= limit)
PTX_SHUFFLE(shuffle_down, lane + static_cast<int>(b & 31), source <= limit)
PTX_SHUFFLE(shuffle_bfly, lane ^ static_cast<int>(b & 31), source <= limit)
PTX_SHUFFLE(shuffle_idx, first | (static_cast<int>(b & 31) & ~segments), source <= limit)
#undef PTX_SHUFFLE

template <class T>
inline u32 warp_operation(EmulatorWarpOperation operation, T operand, u32 mask, const char* file,
                          int line) {
  return static_cast<u32>(
      emulator_warp_operation(operation, mask, static_cast<u64>(operand), 0, file, line));
}

}  // namespace ptx
