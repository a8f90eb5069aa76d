// pad: y = x with elements added or (negative) cut off at both ends of any axis; what is added is a
// constant, the elements mirrored at the edge ("reflect": the edge itself once) or the edge itself.
// pad_grad: the adjoint of the latter two; what was copied is added to where it came from.
#include "rows.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

enum Mode : int64_t { constant = 0, reflect = 1, edge = 2 };

// x is the small side of pad and grad_y the large one of pad_grad; both have y's rank, at least 1.
// How much is added at the ends is what the sizes say.
struct PadArgs {
  Tensor x, y;
  int64_t begins[max_rank];
  int64_t mode;
  double value;
  void* scratch;
};

// The element of x (size) that is copied to element i of y, counted from x's first; -1: none.
int64_t source_of(int64_t i, int64_t size, int64_t mode) {
  if (i >= 0 && i < size) return i;
  if (mode == constant) return -1;
  if (mode == edge) return i < 0 ? 0 : size - 1;
  return i < 0 ? -i : 2 * (size - 1) - i;
}

int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t axis = 0; axis + 1 < t.rank; ++axis) rows *= t.shape[axis];
  return rows;
}

// The indices of row `row` along all axes but the last.
void unravel(const Tensor& t, int64_t row, int64_t* index) {
  for (int64_t axis = t.rank - 2; axis >= 0; --axis) {
    index[axis] = row % t.shape[axis];
    row /= t.shape[axis];
  }
}

template <class T>
void copy(T* y, int64_t y_step, const T* x, int64_t x_step, int64_t count) {
  if (y_step == 1 && x_step == 1) {
    __builtin_memcpy(y, x, count * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) y[i * y_step] = x[i * x_step];
}

template <class T>
void fill(T* y, int64_t step, T value, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) y[i * step] = value;
}

// One row of y; `offset` is where its row of x begins, or -1 if all of it is outside.
template <class T>
void pad_row(const PadArgs& a, T* y, int64_t y_step, bool outside, int64_t offset, T value) {
  const int64_t last = a.y.rank - 1, count = a.y.shape[last], size = a.x.shape[last];
  if (outside) return fill(y, y_step, value, 0, count);
  const int64_t begin = a.begins[last], step = a.x.strides[last];
  const int64_t from = smaller(larger(begin, 0), count);
  const int64_t to = larger(from, smaller(begin + size, count));
  const T* x = static_cast<const T*>(a.x.data) + offset;
  if (a.mode == constant) {
    fill(y, y_step, value, 0, from);
    fill(y, y_step, value, to, count);
  } else {
    for (int64_t i = 0; i < from; ++i) y[i * y_step] = x[source_of(i - begin, size, a.mode) * step];
    for (int64_t i = to; i < count; ++i)
      y[i * y_step] = x[source_of(i - begin, size, a.mode) * step];
  }
  if (to > from) copy(y + from * y_step, y_step, x + (from - begin) * step, step, to - from);
}

template <class T>
void pad_as(const PadArgs& a, T value, Team& team) {
  const int64_t last = a.y.rank - 1, rows = rows_of(a.y);
  const int64_t block = larger(1, 32768 / a.y.shape[last]);
  parallel(team, ceil_div(rows, block), [&](int64_t task, int64_t) {
    for (int64_t row = task * block; row < smaller((task + 1) * block, rows); ++row) {
      int64_t index[max_rank];
      unravel(a.y, row, index);
      int64_t to = 0, from = 0;
      bool outside = false;
      for (int64_t axis = 0; axis < last; ++axis) {
        const int64_t i = source_of(index[axis] - a.begins[axis], a.x.shape[axis], a.mode);
        outside |= i < 0;
        to += index[axis] * a.y.strides[axis];
        from += i * a.x.strides[axis];
      }
      T* y = static_cast<T*>(a.y.data) + to;
      pad_row(a, y, a.y.strides[last], outside, from, value);
    }
  });
}

void pad(const void* arguments, Team& team) {
  const auto& a = *static_cast<const PadArgs*>(arguments);
  if (a.y.dtype == F32)
    pad_as(a, (float)a.value, team);
  else if (a.y.dtype == BF16)
    pad_as(a, to_bf16((float)a.value), team);
  else
    pad_as(a, (uint8_t)(a.value != 0), team);
}

int64_t pad_scratch(const void*, int64_t) { return 0; }

// Element i of y (size) was copied to these elements of an axis of grad_y (total): up to three runs
// [from, to), one behind the other.
struct Run {
  int64_t from, to;
};

int copies_of(int64_t i, int64_t begin, int64_t size, int64_t total, int64_t mode, Run* runs) {
  int count = 0;
  const auto add = [&](int64_t from, int64_t to) {
    if (from < to) runs[count++] = {from, to};
  };
  const int64_t end = begin + size;  // of the middle
  if (mode == edge) {
    add(i == 0 ? 0 : begin + i, i == size - 1 ? total : begin + i + 1);
    return count;
  }
  if (i >= 1 && i <= begin) add(begin - i, begin - i + 1);
  add(begin + i, begin + i + 1);
  const int64_t mirrored = end + size - 2 - i;
  if (i <= size - 2 && mirrored < total) add(mirrored, mirrored + 1);
  return count;
}

template <class T>
void add_row(float* sums, const T* from, int64_t step, int64_t count) {
  int64_t i = 0;
  if (step == 1)
    for (; i + lanes <= count; i += lanes) store(sums + i, load(sums + i) + load_row(from + i));
  for (; i < count; ++i) sums[i] += to_float(from[i * step]);
}

// Adds to `sums` every row of grad_y that was copied from the row `index` of y.
void add_copies(const PadArgs& a, const int64_t* index, int64_t axis, int64_t offset,
                float* sums) {
  const int64_t last = a.y.rank - 1;
  if (axis == last) {
    const int64_t count = a.x.shape[last], step = a.x.strides[last];
    if (a.x.dtype == F32)
      add_row(sums, static_cast<const float*>(a.x.data) + offset, step, count);
    else
      add_row(sums, static_cast<const uint16_t*>(a.x.data) + offset, step, count);
    return;
  }
  Run runs[3];
  const int count = copies_of(index[axis], a.begins[axis], a.y.shape[axis], a.x.shape[axis],
                              a.mode, runs);
  for (int n = 0; n < count; ++n)
    for (int64_t i = runs[n].from; i < runs[n].to; ++i)
      add_copies(a, index, axis + 1, offset + i * a.x.strides[axis], sums);
}

template <class Y>
void fold_row(const PadArgs& a, Y* y, int64_t step, const float* sums) {
  const int64_t last = a.y.rank - 1, size = a.y.shape[last], total = a.x.shape[last];
  const int64_t begin = a.begins[last], after = total - begin - size;
  const bool mirrored = a.mode == reflect;
  const auto write = [&](int64_t i) {
    Run runs[3];
    const int count = copies_of(i, begin, size, total, a.mode, runs);
    float sum = 0;
    for (int n = 0; n < count; ++n)
      for (int64_t k = runs[n].from; k < runs[n].to; ++k) sum += sums[k];
    put(y + i * step, sum);
  };
  const int64_t low = smaller(size, mirrored ? begin + 1 : 1);
  const int64_t high = larger(low, size - (mirrored ? after + 1 : 1));
  for (int64_t i = 0; i < low; ++i) write(i);
  int64_t i = low;
  if (step == 1)
    for (; i + lanes <= high; i += lanes) store_row(y + i, load(sums + begin + i));
  for (; i < high; ++i) put(y + i * step, sums[begin + i]);
  for (; i < size; ++i) write(i);
}

int64_t sums_bytes(const PadArgs& a) {
  return (4 * a.x.shape[a.x.rank - 1] + 63) / 64 * 64;
}

void pad_grad(const void* arguments, Team& team) {
  const auto& a = *static_cast<const PadArgs*>(arguments);
  const int64_t last = a.y.rank - 1, rows = rows_of(a.y), total = a.x.shape[last];
  const int64_t block = larger(1, 16384 / total);
  parallel(team, ceil_div(rows, block), [&](int64_t task, int64_t thread) {
    float* sums = reinterpret_cast<float*>(static_cast<char*>(a.scratch) + thread * sums_bytes(a));
    for (int64_t row = task * block; row < smaller((task + 1) * block, rows); ++row) {
      int64_t index[max_rank], to = 0;
      unravel(a.y, row, index);
      for (int64_t axis = 0; axis < last; ++axis) to += index[axis] * a.y.strides[axis];
      __builtin_memset(sums, 0, 4 * total);
      add_copies(a, index, 0, 0, sums);
      if (a.y.dtype == F32)
        fold_row(a, static_cast<float*>(a.y.data) + to, a.y.strides[last], sums);
      else
        fold_row(a, static_cast<uint16_t*>(a.y.data) + to, a.y.strides[last], sums);
    }
  });
}

int64_t pad_grad_scratch(const void* arguments, int64_t threads) {
  return threads * sums_bytes(*static_cast<const PadArgs*>(arguments));
}

}  // namespace

EA_ENTRIES(pad, {"pad", pad, pad_scratch, sizeof(PadArgs)},
           {"pad_grad", pad_grad, pad_grad_scratch, sizeof(PadArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
