// pad: y = x with elements added or (negative) cut off at both ends of any axis; what is added is a
// constant, the elements mirrored at the edge ("reflect": the edge itself once) or the edge itself.
// It moves units of 1, 2, 4, 8 or 16 bytes, whatever they are: an element, or several neighbours.
// pad_grad: the adjoint of the latter two; an element adds up what was copied from it.
// Tensors have max_rank axes, as many as needed of length 1 in front; y is written with =.
#include "device.cuh"

namespace edgeadapt {

enum Mode : int64_t { constant = 0, reflect = 1, edge = 2 };

struct PadArgs {
  Tensor x, y;  // strides and the last axis count units; its dtype is not looked at
  int64_t begins[max_rank];
  int64_t mode;
  int64_t count;     // of y's units, below 2^31
  int64_t value[2];  // a unit of the constant, in the first bytes
};

struct PadGradArgs {
  Tensor grad_y, y;
  int64_t begins[max_rank];
  int64_t mode;
  int64_t count;  // of y's elements, below 2^31
};

constexpr int pad_threads = 256;

// The index of this thread's element along every axis; false if there is none.
EA_DEVICE bool own_index(const Tensor& y, int64_t count, int32_t (&index)[max_rank]) {
  const int64_t place = (int64_t)blockIdx.x * pad_threads + threadIdx.x;
  if (place >= count) return false;
  uint32_t rest = (uint32_t)place;
#pragma unroll
  for (int axis = max_rank - 1; axis >= 0; --axis) {
    const uint32_t length = (uint32_t)y.shape[axis], above = length == 1 ? rest : rest / length;
    index[axis] = (int32_t)(rest - above * length);
    rest = above;
  }
  return true;
}

// The element of an axis of x (size) that is copied to place i, counted from x's first; -1: none.
EA_DEVICE int32_t source_of(int32_t i, int32_t size, int64_t mode) {
  if (i >= 0 && i < size) return i;
  if (mode == constant) return -1;
  if (mode == edge) return i < 0 ? 0 : size - 1;
  return i < 0 ? -i : 2 * (size - 1) - i;
}

template <class Unit>
EA_DEVICE void pad_units(const PadArgs& a) {
  int32_t index[max_rank];
  if (!own_index(a.y, a.count, index)) return;
  int64_t to = 0, from = 0;
  bool outside = false;
#pragma unroll
  for (int axis = 0; axis < max_rank; ++axis) {
    const int32_t i = index[axis] - (int32_t)a.begins[axis];
    const int32_t source = source_of(i, (int32_t)a.x.shape[axis], a.mode);
    outside |= source < 0;
    to += index[axis] * a.y.strides[axis];
    from += source * a.x.strides[axis];
  }
  Unit unit;
  if (outside) memcpy(&unit, a.value, sizeof unit);
  else unit = static_cast<const Unit*>(a.x.data)[from];
  static_cast<Unit*>(a.y.data)[to] = unit;
}

// Where an element of an axis of y was copied to: `low` if it is at least 0, then all from `from`
// to `to`, then `high` if it is at least 0.
struct Copies {
  int32_t low, from, to, high;
};

EA_DEVICE Copies copies_of(int32_t i, int32_t begin, int32_t size, int32_t total, int64_t mode) {
  const int32_t place = begin + i;
  if (mode == edge) return {-1, i == 0 ? 0 : place, i == size - 1 ? total : place + 1, -1};
  const int32_t before = i == 0 ? -1 : begin - i, behind = begin + 2 * (size - 1) - i;
  return {before, place, place + 1, i < size - 1 && behind < total ? behind : -1};
}

EA_DEVICE int32_t count_of(const Copies& copies) {
  return (copies.low >= 0) + copies.to - copies.from + (copies.high >= 0);
}

EA_DEVICE int32_t copy_number(const Copies& copies, int32_t k) {
  const int32_t at = copies.from + k - (copies.low >= 0);
  return at < copies.from ? copies.low : at < copies.to ? at : copies.high;
}

// The k-th copy of an element with `index`; returns false if there are no more than k.
EA_DEVICE bool offset_of_copy(const PadGradArgs& a, const int32_t (&index)[max_rank], uint32_t k,
                              int64_t* offset) {
  *offset = 0;
#pragma unroll
  for (int axis = max_rank - 1; axis >= 0; --axis) {
    const Copies copies = copies_of(index[axis], (int32_t)a.begins[axis], (int32_t)a.y.shape[axis],
                                    (int32_t)a.grad_y.shape[axis], a.mode);
    const uint32_t count = (uint32_t)count_of(copies), above = count == 1 ? k : k / count;
    *offset += copy_number(copies, (int32_t)(k - above * count)) * a.grad_y.strides[axis];
    k = above;
  }
  return k == 0;
}

EA_KERNEL(pad_grad, PadGradArgs, pad_threads) {
  int32_t index[max_rank];
  if (!own_index(args.y, args.count, index)) return;
  float sum = 0;
  int64_t from;
  for (uint32_t k = 0; offset_of_copy(args, index, k, &from); ++k)
    sum += read(args.grad_y.data, args.grad_y.dtype, from);
  int64_t to = 0;
#pragma unroll
  for (int axis = 0; axis < max_rank; ++axis) to += index[axis] * args.y.strides[axis];
  write(args.y.data, args.y.dtype, to, sum);
}

struct alignas(16) Sixteen {
  uint32_t word[4];
};

EA_KERNEL(pad_1, PadArgs, pad_threads) { pad_units<uint8_t>(args); }
EA_KERNEL(pad_2, PadArgs, pad_threads) { pad_units<uint16_t>(args); }
EA_KERNEL(pad_4, PadArgs, pad_threads) { pad_units<uint32_t>(args); }
EA_KERNEL(pad_8, PadArgs, pad_threads) { pad_units<uint64_t>(args); }
EA_KERNEL(pad_16, PadArgs, pad_threads) { pad_units<Sixteen>(args); }

}  // namespace edgeadapt
