// y = a b, batched. Tiles of y are computed from packed copies of a and b, so that any strides and
// types run at the speed of the inner loop; float32 sums over at most `depth` products are kept in
// registers. A long inner dimension with few tiles is split, and its parts added in their order.
#include "team.h"
#include "walk.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct MatmulArgs {
  Tensor a, b, y;  // of one rank; a batch axis of length 1 is repeated
  void* scratch;
};

// Of y, one inner loop computes tile_rows x tile_columns in registers.
constexpr int tile_rows = EA_REGISTERS == 32 ? 8 : 6;
constexpr int tile_vectors = 2;
constexpr int tile_columns = tile_vectors * lanes;

constexpr int64_t task_rows = 96, task_columns = 128;  // whole tiles at every level
constexpr int64_t depth = 128;                         // a tile's share of b stays in the L1 cache
constexpr int64_t shortest_part = 1024, most_parts = 16;

static_assert(task_rows % tile_rows == 0 && task_columns % tile_columns == 0, "whole tiles");

// A matrix of a batch: element (i, j) at i * row + j * column.
struct Matrix {
  const void* data;
  int64_t dtype, offset, row, column;
};

struct Plan {
  int64_t batch, rows, columns, inner;
  int64_t row_tasks, column_tasks;
  int64_t parts, part;  // of the inner dimension: how many, how long
};

static Plan make_plan(const MatmulArgs& args) {
  const int64_t rank = args.y.rank;
  Plan plan{1, args.y.shape[rank - 2], args.y.shape[rank - 1], args.a.shape[rank - 1], 0, 0, 1, 0};
  for (int64_t axis = 0; axis < rank - 2; ++axis) plan.batch *= args.y.shape[axis];
  plan.row_tasks = ceil_div(plan.rows, task_rows);
  plan.column_tasks = ceil_div(plan.columns, task_columns);
  const int64_t tiles = plan.batch * plan.row_tasks * plan.column_tasks;
  const int64_t wanted = smaller(plan.inner / shortest_part, most_parts / tiles);
  plan.part = ceil_div(ceil_div(plan.inner, larger(1, wanted)), depth) * depth;
  plan.parts = ceil_div(plan.inner, plan.part);
  return plan;
}

static Matrix find_matrix(const Tensor& x, const Tensor& y, int64_t batch) {
  Matrix matrix{x.data, x.dtype, 0, x.strides[x.rank - 2], x.strides[x.rank - 1]};
  for (int64_t axis = x.rank - 3; axis >= 0; --axis) {
    if (x.shape[axis] > 1) matrix.offset += batch % y.shape[axis] * x.strides[axis];
    batch /= y.shape[axis];
  }
  return matrix;
}

// A square of vectors, its rows and columns exchanged: interleaving the first half with the second
// as many times as it takes to number the lanes.
EA_INLINE void transpose(Vec* rows) {
  for (int half = 1; half < lanes; half *= 2) {
    Vec next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + lanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// How `count` rows (columns) of a matrix, the length of one of which is `length`, go into a group
// of `group`, element k of each side by side, zeros for what is missing:
// to[k * group + i] = from[i * across + k * along].
struct Group {
  int64_t count, length, across, along;
};

template <int group, class T>
static void pack_any(float* to, const T* from, const Group& g, int64_t k) {
  for (; k < g.length; ++k) {
    float* line = to + k * group;
    for (int64_t i = 0; i < g.count; ++i) line[i] = to_float(from[i * g.across + k * g.along]);
    for (int64_t i = g.count; i < group; ++i) line[i] = 0;
  }
}

// along == 1: squares of vectors are transposed, as many whole ones as there are.
template <int group, class T>
static void pack_transposed(float* to, const T* from, const Group& g) {
  int64_t k = 0;
  for (; k + lanes <= g.length; k += lanes) {
    for (int first = 0; first < group; first += lanes) {
      Vec square[lanes];
      for (int i = 0; i < lanes; ++i)
        square[i] = first + i < g.count ? load_row(from + (first + i) * g.across + k) : Vec{};
      transpose(square);
      float* lines = to + k * group + first;
      for (int i = 0; i < lanes; ++i, lines += group) {
        if (first + lanes <= group)
          store(lines, square[i]);
        else
          __builtin_memcpy(lines, &square[i], group % lanes * sizeof(float));
      }
    }
  }
  pack_any<group>(to, from, g, k);
}

// across == 1 and all of a group of whole vectors.
template <int group, class T>
static void pack_lines(float* to, const T* from, const Group& g) {
  for (int64_t k = 0; k < g.length; ++k)
    for (int i = 0; i < group; i += lanes)
      store(to + k * group + i, load_row(from + k * g.along + i));
}

template <int group, class T>
static void pack_groups(float* to, const T* from, int64_t size, Group g) {
  for (int64_t first = 0; first < size; first += group, to += group * g.length) {
    const T* start = from + first * g.across;
    g.count = smaller(group, size - first);
    if (g.across == 1 && g.count == group && group % lanes == 0)
      pack_lines<group>(to, start, g);
    else if (g.along == 1)
      pack_transposed<group>(to, start, g);
    else
      pack_any<group>(to, start, g, 0);
  }
}

// All groups of `size` rows of a (columns of b).
template <int group>
static void pack(float* to, const Matrix& matrix, int64_t offset, int64_t size, const Group& g) {
  offset += matrix.offset;
  if (matrix.dtype == F32)
    pack_groups<group>(to, static_cast<const float*>(matrix.data) + offset, size, g);
  else
    pack_groups<group>(to, static_cast<const uint16_t*>(matrix.data) + offset, size, g);
}

// sums (tile_rows, tile_columns), rows `pitch` apart, += a b of packed groups.
static void multiply_tile(float* sums, int64_t pitch, const float* a, const float* b,
                          int64_t length) {
  Vec total[tile_rows][tile_vectors] = {};
  for (int64_t k = 0; k < length; ++k, a += tile_rows, b += tile_columns) {
    Vec right[tile_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) right[v] = load(b + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < tile_rows; ++r) {
      const Vec left = splat(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < tile_vectors; ++v) total[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < tile_rows; ++r) {
    for (int v = 0; v < tile_vectors; ++v) {
      float* p = sums + r * pitch + v * lanes;
      store(p, load(p) + total[r][v]);
    }
  }
}

struct Room {
  float a[task_rows * depth];
  float b[task_columns * depth];
  float sums[task_rows * task_columns];
};

// Which part of the product a task computes.
struct Piece {
  int64_t batch, row, column, part;  // row and column of its first element
  int64_t rows, columns;
};

static Piece find_piece(const Plan& plan, int64_t task) {
  Piece piece;
  piece.part = task % plan.parts;
  task /= plan.parts;
  piece.column = task % plan.column_tasks * task_columns;
  task /= plan.column_tasks;
  piece.row = task % plan.row_tasks * task_rows;
  piece.batch = task / plan.row_tasks;
  piece.rows = smaller(task_rows, plan.rows - piece.row);
  piece.columns = smaller(task_columns, plan.columns - piece.column);
  return piece;
}

// room.sums = the piece's sum over its part of the inner dimension.
static void multiply_piece(const MatmulArgs& args, const Plan& plan, const Piece& piece,
                           Room& room) {
  const Matrix a = find_matrix(args.a, args.y, piece.batch);
  const Matrix b = find_matrix(args.b, args.y, piece.batch);
  for (int64_t i = 0; i < task_rows * task_columns; ++i) room.sums[i] = 0;
  const int64_t end = smaller((piece.part + 1) * plan.part, plan.inner);
  for (int64_t k = piece.part * plan.part; k < end; k += depth) {
    const int64_t length = smaller(depth, end - k);
    pack<tile_rows>(room.a, a, piece.row * a.row + k * a.column, piece.rows,
                    Group{0, length, a.row, a.column});
    pack<tile_columns>(room.b, b, piece.column * b.column + k * b.row, piece.columns,
                       Group{0, length, b.column, b.row});
    for (int64_t j = 0; j < piece.columns; j += tile_columns)
      for (int64_t i = 0; i < piece.rows; i += tile_rows)
        multiply_tile(room.sums + i * task_columns + j, task_columns, room.a + i * length,
                      room.b + j * length, length);
  }
}

static void write_piece(const MatmulArgs& args, const Piece& piece, const float* sums) {
  const Matrix y = find_matrix(args.y, args.y, piece.batch);
  for (int64_t i = 0; i < piece.rows; ++i) {
    const int64_t offset = y.offset + (piece.row + i) * y.row + piece.column * y.column;
    write_any(args.y.data, sums + i * task_columns, y.dtype, offset, piece.columns, y.column);
  }
}

void matmul(const void* arguments, Team& team) {
  const MatmulArgs& args = *static_cast<const MatmulArgs*>(arguments);
  const Plan plan = make_plan(args);
  const int64_t pieces = plan.batch * plan.row_tasks * plan.column_tasks;
  Room* rooms = static_cast<Room*>(args.scratch);
  float* parts = reinterpret_cast<float*>(rooms + team.size());
  constexpr int64_t size = task_rows * task_columns;
  parallel(team, pieces * plan.parts, [&](int64_t task, int64_t thread) {
    const Piece piece = find_piece(plan, task);
    multiply_piece(args, plan, piece, rooms[thread]);
    if (plan.parts == 1)
      write_piece(args, piece, rooms[thread].sums);
    else
      __builtin_memcpy(parts + task * size, rooms[thread].sums, size * sizeof(float));
  });
  if (plan.parts == 1) return;
  for (int64_t p = 0; p < pieces; ++p) {
    float* sums = parts + p * plan.parts * size;
    for (int64_t part = 1; part < plan.parts; ++part)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
    write_piece(args, find_piece(plan, p * plan.parts), sums);
  }
}

int64_t matmul_scratch(const void* arguments, int64_t threads) {
  const Plan plan = make_plan(*static_cast<const MatmulArgs*>(arguments));
  const int64_t pieces = plan.batch * plan.row_tasks * plan.column_tasks;
  const int64_t parts = plan.parts == 1 ? 0 : pieces * plan.parts * task_rows * task_columns;
  return threads * (int64_t)sizeof(Room) + parts * (int64_t)sizeof(float);
}

}  // namespace

EA_ENTRIES(matmul, {"matmul", matmul, matmul_scratch, sizeof(MatmulArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
