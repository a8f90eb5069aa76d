// resize: y = x enlarged or reduced by a whole number, with half-pixel centres ("linear") or by
// repeating and skipping pixels ("nearest"); resize_grad: its adjoint. Both add `add` if given.
//   resize       x (1, C, H, W) -> y (1, C, H * factor, W * factor), or sizes divided by factor
//   resize_grad  the other way round; pixels that the reduction left out get 0
#include "resample.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct ResizeArgs {
  Plane x, add, y;
  int64_t factor;
  int64_t enlarge;  // of the resize, also when this is its adjoint
  int64_t linear;
  void* scratch;
};

// The reduction whose adjoint enlarges, or the one that is asked for.
Axis reduction(const ResizeArgs& a) {
  const int64_t n = a.factor;
  if (a.enlarge && a.linear)  // each output lies between two inputs: as seen from an input, a hat
    return {n, -(n / 2), 2 * n - n % 2, false, Border::mirrored, true, 0};
  if (a.enlarge) return {n, 0, n, false, Border::zero, false, 1};
  if (a.linear)  // the middle of n pixels is one of them or between two
    return {n, (n - 1) / 2, 2 - n % 2, false, Border::zero, false, n % 2 ? 1.0f : 0.5f};
  return {n, 0, 1, false, Border::zero, false, 1};
}

Resample job_of(const ResizeArgs& a, bool gradient) {
  Axis axis = reduction(a);
  axis.adjoint = gradient != (a.enlarge != 0);
  if (axis.adjoint && axis.border == Border::mirrored) axis.border = Border::nearest;
  return {a.x, a.add, a.y, axis, axis};
}

void resize(const void* arguments, Team& team) {
  const auto& a = *static_cast<const ResizeArgs*>(arguments);
  resample(job_of(a, false), a.scratch, team);
}

int64_t resize_scratch(const void* arguments, int64_t threads) {
  return resample_scratch(job_of(*static_cast<const ResizeArgs*>(arguments), false), threads);
}

void resize_grad(const void* arguments, Team& team) {
  const auto& a = *static_cast<const ResizeArgs*>(arguments);
  resample(job_of(a, true), a.scratch, team);
}

int64_t resize_grad_scratch(const void* arguments, int64_t threads) {
  return resample_scratch(job_of(*static_cast<const ResizeArgs*>(arguments), true), threads);
}

}  // namespace

EA_ENTRIES(resize, {"resize", resize, resize_scratch, sizeof(ResizeArgs)},
           {"resize_grad", resize_grad, resize_grad_scratch, sizeof(ResizeArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
