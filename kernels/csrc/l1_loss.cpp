// value = value_scale * sum |a - b| and, in the same pass, grad = grad_scale * sign(a - b).
#include "elementary.h"
#include "team.h"
#include "walk.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct L1LossArgs {
  Plane a, b;
  Plane grad;  // may be absent; may be the memory of a or b
  float* value;
  double value_scale, grad_scale;
  void* scratch;
};

using Axes = Walk<3>;  // a, b, grad

constexpr int64_t blocks_of_task = 32;

static Tensor tensor_of(const Plane& plane) {
  return Tensor{plane.data,
                plane.dtype,
                3,
                {plane.channels, plane.height, plane.width},
                {plane.channel_stride, plane.row_stride, 1}};
}

struct Images {
  Tensor a, b, grad;
  Axes walk;
};

static Images find_images(const L1LossArgs& args) {
  Images images{tensor_of(args.a), tensor_of(args.b), tensor_of(args.grad), {}};
  const Tensor* operands[3] = {&images.a, &images.b, &images.grad};
  // Axes are merged as far as what is there allows.
  start_walk(images.walk, images.a, 7, operands, args.grad.data ? 3 : 2);
  return images;
}

// Buffers for blocks that cannot be used where they are.
struct Room {
  alignas(64) float a[block_size];
  alignas(64) float b[block_size];
  alignas(64) float grad[block_size];
};

// Sum of |a - b| over a block; what is behind its end up to a whole vector counts as equal.
template <bool with_grad>
static double compare(const float* a, const float* b, float* grad, int64_t count, Vec scale) {
  const auto next = [&](int64_t i) {
    const Vec difference = load(a + i) - load(b + i);
    if (with_grad) {
      const Vec sign = difference < 0.0f ? -scale : difference * 0.0f;  // keeps NaN
      store(grad + i, difference > 0.0f ? scale : sign);
    }
    return magnitude(difference);
  };
  Vec even = {}, odd = {};  // a sum waits for the one before it: two run at a time
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    even += next(i);
    odd += next(i + lanes);
  }
  if (i < count) even += next(i);
  even += odd;
  double total = 0;
  for (int lane = 0; lane < lanes; ++lane) total += even[lane];
  return total;
}

static double compare_block(const L1LossArgs& args, const Images& images, int64_t number,
                            Room& room) {
  const Axes& walk = images.walk;
  const Block block = find_block(walk, number);
  const float* a = find_vectors(walk, block, 0, images.a);
  const float* b = find_vectors(walk, block, 1, images.b);
  const int64_t count = ceil_div(block.count, lanes) * lanes;
  if (!a) read_block(room.a, walk, block, 0, images.a);
  if (!b) read_block(room.b, walk, block, 1, images.b);
  // If one of them is not whole vectors, neither is.
  for (int64_t i = block.count; i < count; ++i) room.a[i] = room.b[i] = 0;
  float* direct = args.grad.data ? find_vectors(walk, block, 2, images.grad) : nullptr;
  float* grad = !args.grad.data ? nullptr : direct ? direct : room.grad;
  if (!a) a = room.a;
  if (!b) b = room.b;
  const Vec scale = splat((float)args.grad_scale);
  const double sum = grad ? compare<true>(a, b, grad, count, scale)
                          : compare<false>(a, b, nullptr, count, scale);
  if (grad && !direct) write_block(grad, walk, block, 2, images.grad);
  return sum;
}

void l1_loss(const void* arguments, Team& team) {
  const L1LossArgs& args = *static_cast<const L1LossArgs*>(arguments);
  const Images images = find_images(args);
  const int64_t tasks = ceil_div(images.walk.blocks, blocks_of_task);
  double* totals = static_cast<double*>(args.scratch);
  parallel(team, tasks, [&](int64_t task, int64_t) {
    Room room;
    const int64_t end = smaller((task + 1) * blocks_of_task, images.walk.blocks);
    totals[task] = 0;
    for (int64_t b = task * blocks_of_task; b < end; ++b)
      totals[task] += compare_block(args, images, b, room);
  });
  double total = 0;
  for (int64_t task = 0; task < tasks; ++task) total += totals[task];
  *args.value = (float)(args.value_scale * total);
}

int64_t l1_loss_scratch(const void* arguments, int64_t) {
  const Images images = find_images(*static_cast<const L1LossArgs*>(arguments));
  return ceil_div(images.walk.blocks, blocks_of_task) * (int64_t)sizeof(double);
}

}  // namespace

EA_ENTRIES(l1_loss, {"l1_loss", l1_loss, l1_loss_scratch, sizeof(L1LossArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
