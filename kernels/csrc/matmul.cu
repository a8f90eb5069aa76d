// y = a @ b, of any layout and type, in float32. A block makes a tile of 32 x 32 of y from tiles of
// a and b in shared memory: an element of a is read N / 32 times, one of b M / 32 times. Four
// multiplications for five reads of shared memory bound it. Large products are rare in
// image networks: convolutions are where the work is.
#include "device.cuh"

namespace edgeadapt {

constexpr int side = 32, threads = 256;
constexpr int rows = side * side / threads;  // of the tile, in one thread: every eighth

// (..., M, K), (..., K, N), (..., M, N) of one rank; a batch axis of a or b may be 1.
struct MatmulArgs {
  Tensor a, b, y;
};

// A matrix within its batch.
struct Matrix {
  const void* data;
  int64_t dtype, first, height, width, row_stride, column_stride;
};

EA_DEVICE Matrix find_matrix(const Tensor& x, const Tensor& y, int64_t batch) {
  const int64_t rank = x.rank;
  int64_t first = 0;
#pragma unroll 1
  for (int64_t axis = rank - 3; axis >= 0; --axis) {
    const int64_t i = batch % y.shape[axis];
    batch /= y.shape[axis];
    if (x.shape[axis] > 1) first += i * x.strides[axis];
  }
  const int64_t row_stride = x.strides[rank - 2], column_stride = x.strides[rank - 1];
  return {x.data, x.dtype, first, x.shape[rank - 2], x.shape[rank - 1], row_stride, column_stride};
}

EA_DEVICE int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

// The tile from (row, column) on; 0 outside. Neighbouring threads read along the axis whose
// neighbours are nearer.
EA_DEVICE void read_tile(const Matrix& x, int64_t row, int64_t column,
                         float (&tile)[side][side + 1]) {
  const bool by_rows = magnitude(x.column_stride) <= magnitude(x.row_stride);
  const int lane = threadIdx.x % side, line = threadIdx.x / side;
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    const int other = line + k * (threads / side);
    const int i = by_rows ? other : lane, j = by_rows ? lane : other;
    const bool inside = row + i < x.height && column + j < x.width;
    const int64_t at = x.first + (row + i) * x.row_stride + (column + j) * x.column_stride;
    tile[i][j] = inside ? read(x.data, x.dtype, at) : 0.0f;
  }
}

// sums += the product of two tiles. It is added up by itself first, so that the error of a sum of K
// products grows with K / 32, not with K.
EA_DEVICE void multiply(const float (&a)[side][side + 1], const float (&b)[side][side + 1],
                        float (&sums)[rows]) {
  const int lane = threadIdx.x % side, line = threadIdx.x / side;
  float part[rows] = {};
#pragma unroll 4  // all 32 would take so many registers that one block less fits
  for (int k = 0; k < side; ++k) {
    const float factor = b[k][lane];
#pragma unroll
    for (int r = 0; r < rows; ++r) part[r] += a[line + r * (threads / side)][k] * factor;
  }
#pragma unroll
  for (int r = 0; r < rows; ++r) sums[r] += part[r];
}

EA_KERNEL(matmul, MatmulArgs, threads) {
  EA_SHARED(float, a_tile, [side][side + 1]);  // one more: columns lie in different banks
  EA_SHARED(float, b_tile, [side][side + 1]);
  const int64_t rank = args.y.rank, height = args.y.shape[rank - 2], width = args.y.shape[rank - 1];
  const int64_t across = ceil_div(width, (int64_t)side);
  const int64_t tiles = across * ceil_div(height, (int64_t)side);
  const int64_t batch = blockIdx.x / tiles, within = blockIdx.x % tiles;
  const int64_t row = within / across * side, column = within % across * side;
  const Matrix a = find_matrix(args.a, args.y, batch), b = find_matrix(args.b, args.y, batch);
  float sums[rows] = {};
#pragma unroll 1
  for (int64_t k = 0; k < a.width; k += side) {
    read_tile(a, row, k, a_tile);
    read_tile(b, k, column, b_tile);
    __syncthreads();
    multiply(a_tile, b_tile, sums);
    __syncthreads();
  }
  const Matrix y = find_matrix(args.y, args.y, batch);
  const int lane = threadIdx.x % side, line = threadIdx.x / side;
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const int64_t i = row + line + r * (threads / side), j = column + lane;
    if (i >= height || j >= width) continue;
    write(args.y.data, args.y.dtype, y.first + i * y.row_stride + j * y.column_stride, sums[r]);
  }
}

}  // namespace edgeadapt
