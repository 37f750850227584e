// SPDX-License-Identifier: Apache-2.0
// The special function unit as an adversary: every result is as wrong as NVIDIA documents at most.
// A kernel whose results are good with errors of either sign does not depend on luck.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace {

// The float furthest from `exact` in that direction whose error is at most `ulps` units in the last
// place.
float displaced(double exact, int ulps, bool upwards) {
  float result = static_cast<float>(exact);
  const float beyond = upwards ? INFINITY : -INFINITY;
  if (upwards ? result > exact : result < exact) result = nextafterf(result, -beyond);
  for (int i = 0; i < ulps; i++) result = nextafterf(result, beyond);
  return result;
}

bool is_odd_hash(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return (bits * 0x9e3779b9u >> 31) != 0;
}

}  // namespace

// ex2.approx.ftz.f32: subnormal arguments and results are 0.
float emulator_exp2(float x) {
  if (std::fabs(x) < FLT_MIN) x = 0;
  const double exact = std::exp2(static_cast<double>(x));
  if (std::isnan(x) || std::isinf(exact)) return static_cast<float>(exact);
  const EmulatorConfig& config = emulator::runtime.config;
  const int ulps = config.exp2_ulps < 0 ? -config.exp2_ulps : config.exp2_ulps;
  const bool upwards = config.exp2_mixed != 0 ? is_odd_hash(x) : config.exp2_ulps > 0;
  const float result = ulps == 0 ? static_cast<float>(exact) : displaced(exact, ulps, upwards);
  return result < FLT_MIN ? 0 : result;
}

// rcp.approx.ftz.f64: of the upper 32 bits of x, in the upper 32 bits of the result; the lower ones
// are 0. The table that it comes from is not documented: with errors, it is one unit of those bits
// off, as far as exp2_ulps says upwards or downwards.
double emulator_reciprocal(double x) {
  const uint64_t kUpper = ~uint64_t{0} << 32;
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  bits &= kUpper;
  double seen;
  memcpy(&seen, &bits, sizeof(seen));
  if (std::fabs(seen) < DBL_MIN) seen = std::copysign(0.0, seen);
  double result = 1 / seen;
  memcpy(&bits, &result, sizeof(bits));
  const bool ordinary = std::isfinite(result) && std::fabs(result) >= DBL_MIN;
  if (ordinary) {
    const EmulatorConfig& config = emulator::runtime.config;
    const bool upwards = config.exp2_mixed != 0 ? (bits >> 33 & 1) != 0 : config.exp2_ulps > 0;
    bits += uint64_t{1} << 31;  // to the nearest
    if (config.exp2_ulps != 0) bits += upwards ? uint64_t{1} << 32 : ~uint64_t{0} << 32;
  }
  bits &= kUpper;
  memcpy(&result, &bits, sizeof(result));
  return std::fabs(result) < DBL_MIN ? std::copysign(0.0, result) : result;
}
