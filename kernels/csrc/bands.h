// The band matrices of resizing and average pooling along one axis.
//
// Reduction: y[q] = sum over t < taps of weight(t) * x[q * factor + first + t]
// Its adjoint, seen from the element that is written, so that each is written once:
//   y[q * factor + r] = sum over t = r - first (mod factor) of
//                       weight(t) * x[q + (r - first - t) / factor]
// Enlarging is the adjoint of a reduction, and the adjoint of enlarging is that reduction.
#pragma once

#include "rows.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// What lies outside of x. Mirrored repeats the edge itself: what linear enlargement, which repeats
// the edge, added up outside of the image comes back to it.
enum class Border : int64_t { zero, nearest, mirrored };

struct Axis {
  int64_t factor, first, taps;
  bool adjoint;
  Border border;
  bool hat;      // weights fall linearly from the middle tap to both sides; else all are the same
  float weight;  // of every tap
};

float weight_of(const Axis& axis, int64_t t) {
  if (!axis.hat) return axis.weight;
  const float distance = (t + axis.first + 0.5f) / axis.factor - 0.5f;
  return distance < 0 ? 1 + distance : 1 - distance;
}

// One output element in `phases` reads x from q * step + first[phase] on, with its own weights.
struct Bands {
  int64_t phases, step, most;  // most: of the counts
  Border border;
  int64_t* first;
  int64_t* count;
  float* weights;  // weights[phase * most + t]
};

int64_t phases_of(const Axis& axis) { return axis.adjoint ? axis.factor : 1; }
int64_t most_of(const Axis& axis) {
  return axis.adjoint ? ceil_div(axis.taps, axis.factor) : axis.taps;
}
int64_t floor_div(int64_t a, int64_t b) { return -ceil_div(-a, b); }
int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t bands_bytes(const Axis& axis) {
  return round_up(phases_of(axis) * (16 + 4 * most_of(axis)));
}

Bands make_bands(const Axis& axis, char* memory) {
  const int64_t phases = phases_of(axis), most = most_of(axis);
  int64_t* first = reinterpret_cast<int64_t*>(memory);
  float* weights = reinterpret_cast<float*>(first + 2 * phases);
  const Bands bands{phases, axis.adjoint ? 1 : axis.factor, most, axis.border,
                    first,  first + phases,                 weights};
  for (int64_t r = 0; r < phases; ++r) {
    int64_t lowest = 0, stride = 1, count = axis.taps;
    first[r] = axis.first;
    if (axis.adjoint) {
      const int64_t last = floor_div(r - axis.first, axis.factor);
      lowest = r - axis.first - last * axis.factor;  // the tap that meets x[q + last]
      stride = axis.factor;
      count = lowest < axis.taps ? ceil_div(axis.taps - lowest, stride) : 0;
      first[r] = last - count + 1;
    }
    bands.count[r] = count;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tap = axis.adjoint ? lowest + (count - 1 - t) * stride : t;
      weights[r * most + t] = weight_of(axis, tap);
    }
  }
  return bands;
}

// How far a row is read to the left of x, and how many of its elements there must be, counted from
// the leftmost; known without the bands.
int64_t reach_left(const Axis& axis) {
  const int64_t lowest =
      axis.adjoint ? floor_div(-axis.first, axis.factor) - most_of(axis) : axis.first;
  return larger(0, -lowest);
}
int64_t row_length(const Axis& axis, int64_t from, int64_t to) {
  const int64_t last =
      axis.adjoint ? (to - 1) / axis.factor + floor_div(axis.factor - 1 - axis.first, axis.factor)
                   : (to - 1) * axis.factor + axis.first + axis.taps - 1;
  // Vectors are loaded in full, two at a time and one tap further.
  return reach_left(axis) + larger(from, last + 1) + 4 * lanes;
}

// The element of x (size) that stands for element i, or -1 for zero.
int64_t stand_in(int64_t i, int64_t size, Border border) {
  if (i >= 0 && i < size) return i;
  if (border == Border::zero) return -1;
  if (border == Border::nearest) return i < 0 ? 0 : size - 1;
  return i < 0 ? -1 - i : 2 * size - 1 - i;
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
