// How the weight gradient is cut into pieces. Everything here follows from sizes alone: never from
// pointers, and never from the number of threads, on which results must not depend.
#pragma once

#include "block.h"
#include "weight_grad_tile.h"
#include "weight_grad_winograd.h"

namespace edgeadapt {
namespace EA_LEVEL {

struct ConvWeightGradArgs {
  Plane x[4];     // a concatenation along channels; absent ones are null, after the others
  Plane grad_y;   // (1, group * co, height, width)
  float* weight;  // (group * co, ci, kernel), contiguous
  float* bias;    // of grad_y's or x's channels
  int64_t add_weight, add_bias;  // += instead of =
  int64_t bias_of;               // BiasOf
  int64_t kernel[2], strides[2], pads[2], dilations[2], group;  // pads: top, left; may be negative
  void* scratch;
};

enum BiasOf : int64_t { BIAS_NONE = 0, BIAS_GRAD_Y = 1, BIAS_X = 2 };

namespace {

constexpr int64_t line = cache_line;
constexpr int64_t ahead_runs = 4096;  // of the next block; more is not fetched ahead
constexpr int64_t most_shared = 1 << 20;  // bytes of x for which larger blocks are worth it
constexpr int64_t most_combined = 240;  // sums of a layer that are combined at once

// Whether dot() is one instruction; if not, bfloat16 is packed as float32.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool native_bf16 = true;
#else
constexpr bool native_bf16 = false;
#endif

// The taps of one axis. Tap t of output i reads input i * stride + t * dilation - pad. Inputs that
// a stride sets apart are packed as phases; only those that some tap reads are, so that 1x1 with
// stride 2 has one. Taps `period` apart read the same phase.
struct Axis {
  int64_t taps, stride, dilation, pad, period;
  Axis(const ConvWeightGradArgs& a, int axis)
      : taps(a.kernel[axis]),
        stride(a.strides[axis]),
        dilation(a.dilations[axis]),
        pad(a.pads[axis]) {
    period = 1;
    while (period * dilation % stride) period++;
  }
  int64_t phases() const { return smaller(taps, period); }
  // Which input of output 0, counted from -pad, a phase begins with.
  int64_t phase_begin(int64_t phase) const { return phase * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }  // elements of its phase
  int64_t overhang() const { return shift(taps - 1); }  // elements of a phase beyond the outputs
  int64_t reach() const { return (taps - 1) * dilation + 1; }
  int64_t first(int64_t output) const { return output * stride - pad; }
};

// The pixels [begin, end) of grad_y along one axis.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

struct Plan {
  Axis down, right;
  bool half;      // pixels are packed as bfloat16, otherwise as float32
  bool winograd;  // rows are transformed (weight_grad_winograd.h)
  int64_t layers, group_rows;                 // 6 and 4 if they are, else 1 and 1
  int64_t in_channels, out_channels, ci, co;  // of all groups; of one group
  int64_t streams;                            // of a group and layer: ci * taps
  int64_t weights, biases;                    // sums of one layer; of all
  Split row_blocks{1, 1}, column_blocks{1, 1};  // rows are counted in groups
  int64_t pitch;      // elements between rows of a packed plane, the same for x and grad_y
  bool flat;          // a packed plane is run through as if it were one long row
  int64_t x_plane, grad_plane;  // elements of one packed plane
  bool in_place;      // grad_y is not packed: its rows are whole vectors of bfloat16
  int64_t grad_pitch, grad_row_pitch;  // of grad_y as the tiles read it
  Split slices{1, 1};           // of the blocks; each has its own sums
  Split chunks{1, 1};           // of the output channels, or of the groups if there are several
  Split pairs{1, 1};            // of the pairs of layers
  bool shared;  // all blocks of x are packed beforehand, since several chunks read them

  explicit Plan(const ConvWeightGradArgs& a) : down(a, 0), right(a, 1) {
    in_channels = 0;
    half = native_bf16 && a.grad_y.dtype == BF16;
    for (const Plane& x : a.x) {
      in_channels += x.channels;
      half = half && (x.channels == 0 || x.dtype == BF16);
    }
    out_channels = a.grad_y.channels;
    ci = in_channels / a.group;
    co = out_channels / a.group;
    // Of fewer channels there is less to multiply than to transform.
    winograd = !half && down.taps == 3 && down.stride == 1 && down.dilation == 1 &&
               right.stride == 1 && right.taps <= 16 && a.grad_y.height > rows_per_group &&
               ci * co >= 16;
    layers = winograd ? layer_count : 1;
    group_rows = winograd ? rows_per_group : 1;
    streams = ci * taps_down() * right.taps;
    weights = out_channels * streams;
    biases = a.bias_of == BIAS_X ? in_channels : a.bias_of == BIAS_GRAD_Y ? out_channels : 0;
    const int64_t groups = divide_up(a.grad_y.height, group_rows);
    const int64_t by_chunks = winograd ? 8 : divide_up(8, most_chunks(a.group));
    cut_blocks(groups, a.grad_y.width, by_chunks);
    if (blocks() * x_bytes() > most_shared) cut_blocks(groups, a.grad_y.width, 8);
    cut_work(a.group);
    shared = chunks.parts > 1 && a.group == 1;
    in_place = !winograd && !flat && (half || a.grad_y.dtype == F32) &&
               a.grad_y.width % (column_blocks.parts * vector()) == 0;
    grad_pitch = in_place ? a.grad_y.channel_stride : grad_plane;
    grad_row_pitch = in_place ? a.grad_y.row_stride : pitch;
  }

  int64_t element() const { return half ? 2 : 4; }
  int64_t vector() const { return 4 * lanes / element(); }
  int64_t taps_down() const { return winograd ? 1 : down.taps; }
  int64_t overhang_down() const { return winograd ? 0 : down.overhang(); }
  int64_t planes() const { return winograd ? 1 : down.phases() * right.phases(); }  // of a channel
  int64_t x_layer() const { return in_channels * planes() * x_plane; }
  int64_t grad_layer() const { return chunk_channels() * grad_plane; }
  int64_t block_rows() const { return divide_up(row_blocks.count, row_blocks.parts); }
  int64_t blocks() const { return row_blocks.parts * column_blocks.parts; }
  int64_t sums() const { return round_up(layers * weights + biases, line / 4); }  // of one slice

  int64_t offsets_bytes() const { return round_up(streams * 8, line); }
  int64_t x_bytes() const { return round_up(layers * x_layer() * element(), line); }
  int64_t grad_bytes() const {
    return in_place ? 0 : round_up(layers * grad_layer() * element(), line);
  }
  int64_t ahead_bytes() const { return round_up((ahead_runs + block_rows()) * 8, line); }
  int64_t thread_bytes() const {
    return offsets_bytes() + (shared ? 0 : x_bytes()) + grad_bytes() + ahead_bytes();
  }
  int64_t shared_bytes() const { return shared ? blocks() * x_bytes() : 0; }
  int64_t chunk_channels() const { return divide_up(chunks.count, chunks.parts) * unit(); }
  int64_t unit() const { return out_channels / chunks.count; }  // channels that stay together

 private:
  // Blocks are large, to have few halos and few foldings of sums, but fit the L2 cache. A small
  // image is cut further, into `least_blocks`, so that there is work for several threads.
  void cut_blocks(int64_t groups, int64_t width, int64_t least_blocks) {
    const int64_t cache = 400 << 10;
    const int64_t pixel_bytes = element() * (in_channels * planes() * 5 / 4 + out_channels);
    // Of transformed rows a call of a tile sees a quarter, and layers need the cache one by one.
    const int64_t least = winograd ? 2048 : 512, most = winograd ? 8192 : 4096;
    const int64_t area = clamp(cache / pixel_bytes, least, most);
    const int64_t widest = area > 2048 ? 256 : area > 1024 ? 192 : 128;
    column_blocks = Split(width, width < 2 * widest ? 2 * widest : widest);
    const int64_t columns = divide_up(width, column_blocks.parts);
    const int64_t enough = divide_up(groups * column_blocks.parts, least_blocks);
    const int64_t group_area = columns * group_rows;
    int64_t rows = clamp(area / group_area, 1, groups);
    rows = smaller(rows, larger(enough, divide_up(least, group_area)));
    row_blocks = Split(groups, rows);
    lay_out(divide_up(groups, row_blocks.parts), columns);
  }

  void lay_out(int64_t rows, int64_t columns) {
    const int64_t by_rows = rows * divide_up(columns, vector());
    const int64_t tight = columns + right.overhang();
    flat = divide_up(rows * tight, vector()) < by_rows;
    pitch = flat ? tight : round_up(round_up(columns, vector()) + right.overhang(), vector());
    x_plane = odd_lines((rows + overhang_down()) * pitch + right.overhang() + vector());
    grad_plane = odd_lines(rows * pitch + vector());
  }

  // Planes an odd number of cache lines apart spread over the sets of the L1 cache.
  int64_t odd_lines(int64_t elements) const {
    return (divide_up(elements * element(), line) | 1) * line / element();
  }

  int64_t most_chunks(int64_t group) const {
    return clamp(group > 1 ? group : out_channels / 8, 1, 8);
  }

  // At least eight tasks, if that is possible without chunks of few channels.
  void cut_work(int64_t group) {
    slices = Split(blocks(), divide_up(blocks(), layers * weights > (16 << 10) ? 8 : 16));
    const int64_t units = group > 1                       ? group
                          : out_channels % most_channels ? out_channels
                                                         : out_channels / most_channels;
    const int64_t wanted = divide_up(8, slices.parts), possible = most_chunks(group);
    if (winograd) pairs = Split(3, slices.parts * possible < 8 ? 1 : 3);
    chunks = Split(units, divide_up(units, clamp(wanted, 1, possible)));
  }
};

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
