// The gradient of a convolution in its weight and bias:
//   weight[o, c, u, v] = or += sum over i, j of grad_y[o, i, j] *
//                        x[c, i * stride + u * dilation - pad, j * stride + v * dilation - pad]
//   bias[o] = or += sum over pixels of grad_y[o]; or the same of x
// A slice of the image goes block by block: a block of x and of grad_y is packed (borders become
// zeros, phases of a stride become planes, ends of rows are zero up to whole vectors), then every
// weight is a dot product along pixels. Slices have sums of their own, which are added in order.
// What needs no packing is read where it is: grad_y whose rows are whole vectors. Of a small image
// there are few slices, and tasks are chunks of grad_y's channels; x is packed for all beforehand.
//
// One thread of a Zen 4 at 117 GFLOP/s (234 in bfloat16), 2 FLOPs for every product of the formula:
//                        float32   bfloat16
//   3x3 16 -> 16, 256x256    172      205     three rows of float32 take half the products, so
//   3x3 32 -> 32, 128x128    187      203     that more than the peak is possible; what is left
//   3x3 64 -> 64, 64x64      192      198     is memory: tiles alone run at the peak
//   3x3 64 -> 64, 16x16      110      115     here it is folding sums of few pixels
//   4x4 stride 2, 16 -> 32    97      185     256x256
//   1x1 32 -> 16, 256x256     60      133     as long for packing as for the sums
#include "team.h"
#include "weight_grad_sums.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t shared_channels = 8;  // of x, that one task packs for all

static void find_offsets(const Plan& plan, int64_t* offsets) {
  int64_t* to = offsets;
  for (int64_t u = 0; u < plan.taps_down(); u++) {
    for (int64_t v = 0; v < plan.right.taps; v++) {
      const int64_t phase = u % plan.down.period * plan.right.phases() + v % plan.right.period;
      *to++ = phase * plan.x_plane + plan.down.shift(u) * plan.pitch + plan.right.shift(v);
    }
  }
  const int64_t taps = to - offsets, channel = plan.planes() * plan.x_plane;
  for (int64_t i = taps; i < plan.streams; i++) offsets[i] = offsets[i - taps] + channel;
}

// The sums of the part's m-th layer.
template <class T>
static void multiply(const Plan& plan, const Part& part, const Pixels<T>& pixels,
                     const Packed<T>& packed, Ahead& ahead, int64_t m, bool add) {
  float* weight = part.weight + (2 * part.pairs.begin + m) * plan.weights;
  for (int64_t o = part.outputs.begin; o < part.outputs.end;) {
    const int64_t group = o / plan.co, end = smaller(part.outputs.end, (group + 1) * plan.co);
    const int64_t first = group * plan.ci - part.inputs.begin;
    const T* x = packed.x + m * plan.x_layer() + first * plan.planes() * plan.x_plane;
    const T* grad =
        packed.first_grad + m * plan.grad_layer() + (o - part.outputs.begin) * plan.grad_pitch;
    all_tiles(pixels, grad, plan.grad_pitch, end - o, x, packed.offsets, plan.streams, ahead,
              weight + o * plan.streams, plan.streams, add);
    o = end;
  }
}

static void pack_inputs(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                        const Block& block, uint16_t* x) {
  pack_x(plan, a, part, block, x);
}

static void pack_inputs(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                        const Block& block, float* x) {
  if (plan.winograd)
    transform_x(plan, a, part, block, x);
  else
    pack_x(plan, a, part, block, x);
}

static void pack_outputs(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                         const Block& block, const Packed<uint16_t>& packed, bool) {
  pack_grad(plan, a, part, block, packed);
}

static void pack_outputs(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                         const Block& block, const Packed<float>& packed, bool add) {
  if (plan.winograd)
    transform_grad(plan, a, part, block, packed, add);
  else
    pack_grad(plan, a, part, block, packed);
}

// Channels [task, task + 1) * shared_channels of one block, to where all threads read them.
template <class T>
static void pack_shared(const Plan& plan, const ConvWeightGradArgs& a, int64_t task, char* shared) {
  const int64_t block = task % plan.blocks();
  Part part;
  part.pairs = {0, plan.pairs.count};
  part.inputs.begin = task / plan.blocks() * shared_channels;
  part.inputs.end = smaller(part.inputs.begin + shared_channels, plan.in_channels);
  T* x = reinterpret_cast<T*>(shared + block * plan.x_bytes());
  x += part.inputs.begin * plan.planes() * plan.x_plane;
  pack_inputs(plan, a, part, find_block(plan, block), x);
}

template <class T>
static void work_off(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                     const Part& next, char* memory, char* shared) {
  Packed<T> packed(plan, memory);
  Ahead ahead(packed.runs, ahead_runs, plan.block_rows(), packed.x);
  find_offsets(plan, packed.offsets);
  for (int64_t b = part.blocks.begin; b < part.blocks.end; b++) {
    const Block block = find_block(plan, b);
    const bool add = b != part.blocks.begin;
    if (plan.shared)
      packed.x = reinterpret_cast<T*>(shared + b * plan.x_bytes()) +
                 2 * part.pairs.begin * plan.x_layer();
    else
      pack_inputs(plan, a, part, block, packed.x);
    packed.first_grad = packed.grad;
    if (plan.in_place)
      packed.first_grad = static_cast<const T*>(a.grad_y.data) +
                          part.outputs.begin * a.grad_y.channel_stride +
                          block.rows.begin * a.grad_y.row_stride + block.columns.begin;
    else
      pack_outputs(plan, a, part, block, packed, add);
    sum_bias(plan, a, part, block, add);
    Pixels<T> pixels{block.rows.size(), divide_up(block.columns.size(), plan.vector()), plan.pitch,
                     plan.grad_row_pitch};
    if (plan.flat) pixels = {1, divide_up(block.rows.size() * plan.pitch, plan.vector()), 0, 0};
    ahead.clear();
    const int64_t run = pixels.vectors * lines_per_vector * line;
    if (b + 1 < part.blocks.end)
      look_ahead(plan, a, part, find_block(plan, b + 1), run, ahead);
    else
      look_ahead(plan, a, next, find_block(plan, next.blocks.begin), run, ahead);
    const int64_t layers = plan.winograd ? 2 * part.pairs.size() : 1;
    for (int64_t m = 0; m < layers; m++) multiply(plan, part, pixels, packed, ahead, m, add);
  }
}

static Part find_part(const Plan& plan, const ConvWeightGradArgs& a, int64_t task, float* sums) {
  const int64_t pair = task % plan.pairs.parts, rest = task / plan.pairs.parts;
  const int64_t chunk = rest % plan.chunks.parts, slice = rest / plan.chunks.parts;
  Part part;
  part.blocks = {plan.slices.begin(slice), plan.slices.begin(slice + 1)};
  part.pairs = {plan.pairs.begin(pair), plan.pairs.begin(pair + 1)};
  part.outputs = {plan.chunks.begin(chunk) * plan.unit(),
                  plan.chunks.begin(chunk + 1) * plan.unit()};
  const int64_t first = part.outputs.begin / plan.co, last = (part.outputs.end - 1) / plan.co;
  part.inputs = {first * plan.ci, (last + 1) * plan.ci};
  part.owns_outputs = pair == 0;
  part.owns_inputs = pair == 0 && (a.group > 1 || chunk == 0);
  part.weight = sums + slice * plan.sums();
  part.bias = part.weight + plan.layers * plan.weights;
  return part;
}

void conv_weight_grad(const void* arguments, Team& team) {
  const ConvWeightGradArgs& a = *static_cast<const ConvWeightGradArgs*>(arguments);
  const Plan plan(a);
  char* memory = static_cast<char*>(a.scratch);
  char* shared = memory + team.size() * plan.thread_bytes();
  float* sums = reinterpret_cast<float*>(shared + plan.shared_bytes());
  if (plan.shared) {
    const int64_t parts = divide_up(plan.in_channels, shared_channels);
    parallel(team, plan.blocks() * parts, [&](int64_t task, int64_t) {
      plan.half ? pack_shared<uint16_t>(plan, a, task, shared)
                : pack_shared<float>(plan, a, task, shared);
    });
  }
  const int64_t tasks = plan.slices.parts * plan.chunks.parts * plan.pairs.parts;
  parallel(team, tasks, [&](int64_t task, int64_t thread) {
    const Part part = find_part(plan, a, task, sums);
    // A guess at what this thread will do next.
    const Part next = find_part(plan, a, smaller(task + team.size(), tasks - 1), sums);
    char* own = memory + thread * plan.thread_bytes();
    if (plan.half)
      work_off<uint16_t>(plan, a, part, next, own, shared);
    else
      work_off<float>(plan, a, part, next, own, shared);
  });
  const int64_t slices = plan.slices.parts, apart = plan.sums();
  const int64_t unit = plan.winograd ? plan.right.taps : 1;  // sums that are added together
  const Split ranges(plan.weights / unit, 2048);
  parallel(team, ranges.parts, [&](int64_t task, int64_t) {
    const Range range{ranges.begin(task), ranges.begin(task + 1)};
    if (plan.winograd)
      combine_layers(plan, a.weight, sums, range, a.add_weight);
    else
      add_slices(a.weight, sums, slices, apart, range, a.add_weight);
  });
  if (plan.biases)
    add_slices(a.bias, sums + plan.layers * plan.weights, slices, apart, {0, plan.biases},
               a.add_bias);
}

int64_t conv_weight_grad_scratch(const void* arguments, int64_t threads) {
  const Plan plan(*static_cast<const ConvWeightGradArgs*>(arguments));
  return threads * plan.thread_bytes() + plan.shared_bytes() + plan.slices.parts * plan.sums() * 4;
}

}  // namespace

EA_ENTRIES(conv_weight_grad, {"conv_weight_grad", conv_weight_grad, conv_weight_grad_scratch,
                              sizeof(ConvWeightGradArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
