// conv_weight_grad on tensor cores: rows of A are channels of grad_y, columns of B channels of x,
// and what is summed over are pixels. A lane takes the same two words of pixels for A and for B,
// so any assignment of pixels to lanes gives the same sum: lane t of four has columns 4 t to
// 4 t + 3 of a row, two in a step. Of x it then reads four neighbours, once, for all three columns
// of a kernel.
#include "conv_weight_grad.cuh"

namespace edgeadapt {
namespace weight_grad {

// What is staged, what a product takes of a word, and the product.
struct HalfMath {
  using Words = Pairs<Half, F16>;
  EA_DEVICE static uint32_t operand(uint32_t word) { return word; }
  EA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
};

struct BfloatMath {
  using Words = Pairs<Bfloat, BF16>;
  EA_DEVICE static uint32_t operand(uint32_t word) { return word; }
  EA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

struct Tf32Math {
  using Words = Singles;
  EA_DEVICE static uint32_t operand(uint32_t word) { return to_tf32(float_of(word)); }
  EA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

constexpr int lane_columns = span / 4;  // of a row of grad_y
constexpr int steps = lane_columns / 2;  // products along a row

// Where the sums of the products' registers are.
struct MmaPlace {
  EA_DEVICE MmaPlace(const Block&, const Share&) {}
  EA_DEVICE float sum(const float* sums, int o, int c) const {
    const int slot = c / 8 * 4 + o / 8 * 2 + c % 2, lane = o % 8 * 4 + c % 8 / 2;
    return sums[slot * warp_size + lane];
  }
};

// Of one product: grad_y at this lane's column 2 * step and the next.
template <class Math>
EA_DEVICE void load_grad_y(const Block& block, const Share& share, const uint32_t* row, int step,
                           uint32_t (&a)[4]) {
  const int lane = threadIdx.x % warp_size, width = pitch(block.grad_y);
  const uint32_t* p = row + (lane % 4 * lane_columns + 2 * step) * width + share.out + lane / 4;
  const bool more = share.out + 8 < block.grad_y.width;
  a[0] = Math::operand(p[0]);
  a[1] = more ? Math::operand(p[8]) : 0;
  a[2] = Math::operand(p[width]);
  a[3] = more ? Math::operand(p[width + 8]) : 0;
}

// Any strides, dilations and taps.
template <class Math>
struct AnyTaps {
  using Place = MmaPlace;

  EA_DEVICE static void add(const ConvWeightGradArgs& a, const Block& block, const Share& share,
                            const uint32_t* x, const uint32_t* grad_y,
                            float (&sums)[reach * reach][2][4]) {
    const Steps by(a, block);
    const int lane = threadIdx.x % warp_size, rows = (int)a.tile_rows;
    x += share.row * by.down + share.column * by.across + share.in + lane / 4;
#pragma unroll 1
    for (int row = share.split; row < rows; row += share.splits) {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        uint32_t of_grad[4];
        load_grad_y<Math>(block, share, grad_y + row * span * pitch(block.grad_y), step, of_grad);
        add_step(share, by, share.in + 8 < block.x.width ? 2 : 1,
                 x + row * by.row + (lane % 4 * lane_columns + 2 * step) * by.column, of_grad,
                 sums);
      }
    }
  }

 private:
  EA_DEVICE static void add_step(const Share& share, const Steps& by, int columns,
                                 const uint32_t* p, const uint32_t (&of_grad)[4],
                                 float (&sums)[reach * reach][2][4]) {
#pragma unroll
    for (int i = 0; i < reach * reach; ++i) {
      if (i / reach >= share.rows || i % reach >= share.columns) continue;
      const uint32_t* const of_tap = p + i / reach * by.down + i % reach * by.across;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (n >= columns) continue;
        const uint32_t of_x[2] = {Math::operand(of_tap[8 * n]),
                                  Math::operand(of_tap[8 * n + by.column])};
        Math::multiply(sums[i][n], of_grad, of_x);
      }
    }
  }
};

// All of a 3x3 kernel without strides and dilations, two rows of grad_y at a time: four rows of x,
// each of which is read once for up to six products.
template <class Math>
struct ThreeByThree {
  using Place = MmaPlace;

  EA_DEVICE static void add(const ConvWeightGradArgs& a, const Block& block, const Share& share,
                            const uint32_t* x, const uint32_t* grad_y,
                            float (&sums)[reach * reach][2][4]) {
    const int lane = threadIdx.x % warp_size, columns = share.in + 8 < block.x.width ? 2 : 1;
    const int width = pitch(block.x), rows = (int)a.tile_rows;
    x += lane % 4 * lane_columns * width + share.in + lane / 4;
#pragma unroll 1
    for (int i = steps * share.split; i < steps * rows / 2; ++i) {
      const int row = i / steps * 2, step = i % steps;
      uint32_t of_grad[2][4];
#pragma unroll
      for (int next = 0; next < 2; ++next)
        load_grad_y<Math>(block, share, grad_y + (row + next) * span * pitch(block.grad_y), step,
                          of_grad[next]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (n >= columns) continue;
        const uint32_t* p = x + (row * (span + 2) + 2 * step) * width + 8 * n;
#pragma unroll
        for (int down = 0; down < 4; ++down, p += (span + 2) * width)
          add_row(p, width, down, n, of_grad, sums);
      }
      if (step == steps - 1) i += steps * (share.splits - 1);
    }
  }

 private:
  // Of row `down` of x, which the kernel's row u meets in row down - u of grad_y.
  EA_DEVICE static void add_row(const uint32_t* p, int width, int down, int n,
                                const uint32_t (&of_grad)[2][4],
                                float (&sums)[reach * reach][2][4]) {
    uint32_t of_x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) of_x[i] = Math::operand(p[i * width]);
#pragma unroll
    for (int u = 0; u < 3; ++u) {
      if (down - u < 0 || down - u > 1) continue;
#pragma unroll
      for (int v = 0; v < 3; ++v) {
        const uint32_t b[2] = {of_x[v], of_x[v + 1]};
        Math::multiply(sums[3 * u + v][n], of_grad[down - u], b);
      }
    }
  }
};

template <class Math>
EA_DEVICE void run_any(const ConvWeightGradArgs& a) {
  run<typename Math::Words, AnyTaps<Math>>(a);
}

template <class Math>
EA_DEVICE void run_3x3(const ConvWeightGradArgs& a) {
  run<typename Math::Words, ThreeByThree<Math>>(a);
}

}  // namespace weight_grad

#define EA_WEIGHT_GRAD(name, Math)                                                            \
  EA_KERNEL(conv_weight_grad_##name, ConvWeightGradArgs, weight_grad::threads) {              \
    weight_grad::run_any<weight_grad::Math>(args);                                            \
  }                                                                                           \
  EA_KERNEL(conv_weight_grad_##name##_3x3, ConvWeightGradArgs, weight_grad::threads) {        \
    weight_grad::run_3x3<weight_grad::Math>(args);                                            \
  }

EA_WEIGHT_GRAD(f16, HalfMath)
EA_WEIGHT_GRAD(bf16, BfloatMath)
EA_WEIGHT_GRAD(tf32, Tf32Math)

}  // namespace edgeadapt
