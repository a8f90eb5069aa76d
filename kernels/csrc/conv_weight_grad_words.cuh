// Pixels of a tile in shared memory, for conv_weight_grad.cuh. A word is what one lane of a tensor
// core takes along pixels: one float32, or two f16 or bf16 that lie `partner` columns apart.
// Neighbours would be of no use: a tap one column on needs (1, 2) after (0, 1), which no load
// gives. Pairs at a distance shift as words do, for every stride, dilation and tap.
#pragma once

#include "device.cuh"

namespace edgeadapt {
namespace weight_grad {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;
constexpr int unit = 8;  // channels that are staged at once: 16 bytes of f16
// Channels of a pixel are `width` words and two more: lanes that read four pixels apart, each eight
// channels, then meet in no bank of shared memory.
constexpr int skew = 2;

// One operand as a block sees it: some channels of up to four images in a row.
struct Side {
  const Image* images;
  int count;
  int first, channels;  // those of the block, counted through all images
  int width;            // rounded up to units
};

// Which pixels are staged: rows x columns words, the first of which begins at (y, x).
struct Window {
  int y, x, rows, columns, step_y, step_x, partner;
};

EA_DEVICE int pitch(const Side& side) { return side.width + skew; }

EA_DEVICE bool inside(const Side& side, int y, int x) {
  return y >= 0 && x >= 0 && y < side.images[0].height && x < side.images[0].width;
}

// The image that holds `channel`, which is then counted within it.
EA_DEVICE const Image& image_of(const Side& side, int& channel) {
  int i = 0;
  for (; i + 1 < side.count && channel >= side.images[i].channels; ++i)
    channel -= (int)side.images[i].channels;
  return side.images[i];
}

// Whether the unit that begins at channel `own` of the image is 16 bytes or more that lie together,
// at every pixel. Those behind the block's last channel may be there: no one looks at their sums.
EA_DEVICE bool is_run(const Image& image, int own) {
  const int size = image.dtype == F32 ? 4 : 2;
  return image.channel_stride == 1 && own + unit <= image.channels &&
         aligned(static_cast<const uint8_t*>(image.data) + own * size, 16) &&
         (image.row_stride | image.pixel_stride) * size % 16 == 0;
}

// `count` channels from one on, of any layout and type; zero outside and behind the last channel.
// All are under way before the first is waited for.
template <int count>
EA_DEVICE void elements(const Side& side, int channel, int y, int x, float (&values)[count]) {
  uint32_t bits[count] = {};
  int dtypes[count] = {};
  const bool there = inside(side, y, x);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    if (!there || channel + k >= side.first + side.channels) continue;
    int own = channel + k;
    const Image& image = image_of(side, own);
    const int64_t at = offset(image, own, y, x);
    dtypes[k] = (int)image.dtype;
    if (image.dtype == F32) bits[k] = static_cast<const uint32_t*>(image.data)[at];
    else bits[k] = static_cast<const uint16_t*>(image.data)[at];
  }
#pragma unroll
  for (int k = 0; k < count; ++k) {
    const float half = to_float(Half{(uint16_t)bits[k]});
    const float bfloat = to_float(Bfloat{(uint16_t)bits[k]});
    values[k] = dtypes[k] == F32 ? float_of(bits[k]) : dtypes[k] == F16 ? half : bfloat;
  }
}

// One pixel in a word, as float32: a sum over pixels is not to be one of rounded numbers.
struct Singles {
  static constexpr int pixels = 1;

  EA_DEVICE static bool takes(const Image&) { return true; }

  // Words of channels of any kind.
  static constexpr int at_once = unit;
  EA_DEVICE static void any(const Side& side, int channel, int y, int x, int,
                            uint32_t (&words)[at_once]) {
    float values[at_once];
    elements(side, channel, y, x, values);
#pragma unroll
    for (int i = 0; i < at_once; ++i) words[i] = bits_of(values[i]);
  }

  // A unit that is_run(); the image is that of its channels, the first of which is `own`.
  EA_DEVICE static void run(const Side& side, const Image& image, int own, int y, int x, int,
                            uint32_t (&words)[unit]) {
    float values[unit] = {};
    if (inside(side, y, x)) {
      with_type(image.dtype, [&](auto zero) {
        using Element = decltype(zero);
        load(static_cast<const Element*>(image.data) + offset(image, own, y, x), values);
      });
    }
#pragma unroll
    for (int i = 0; i < unit; ++i) words[i] = bits_of(values[i]);
  }

  EA_DEVICE static float sum(uint32_t word, bool low, bool) { return low ? float_of(word) : 0.0f; }
};

// Two pixels in a word, of a type of 16 bits.
template <class Element, Dtype dtype>
struct Pairs {
  static constexpr int pixels = 2;

  EA_DEVICE static bool takes(const Image& image) { return image.dtype == dtype; }

  static constexpr int at_once = 2;  // registers are few
  EA_DEVICE static void any(const Side& side, int channel, int y, int x, int partner,
                            uint32_t (&words)[at_once]) {
    float low[at_once], high[at_once];
    elements(side, channel, y, x, low);
    elements(side, channel, y, x + partner, high);
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      words[i] = pair(from_float<Element>(low[i]), from_float<Element>(high[i]));
  }

  EA_DEVICE static void run(const Side& side, const Image& image, int own, int y, int x,
                            int partner, uint32_t (&words)[unit]) {
    uint32_t low[unit / 2] = {}, high[unit / 2] = {};
    const auto* const p = static_cast<const Element*>(image.data);
    if (inside(side, y, x)) copy(p + offset(image, own, y, x), low);
    if (inside(side, y, x + partner)) copy(p + offset(image, own, y, x + partner), high);
#pragma unroll
    for (int i = 0; i < unit / 2; ++i) {
      words[2 * i] = (low[i] & 0xffff) | high[i] << 16;
      words[2 * i + 1] = low[i] >> 16 | (high[i] & 0xffff0000);
    }
  }

  EA_DEVICE static float sum(uint32_t word, bool low, bool high) {
    return (low ? to_float(Element{(uint16_t)word}) : 0.0f) +
           (high ? to_float(Element{(uint16_t)(word >> 16)}) : 0.0f);
  }

 private:
  EA_DEVICE static void copy(const Element* p, uint32_t (&bits)[unit / 2]) {
    const Packet<16> packet = *reinterpret_cast<const Packet<16>*>(p);
    memcpy(bits, &packet, 16);
  }
};

struct alignas(8) TwoWords {
  uint32_t first, second;
};

template <int count>
EA_DEVICE void put_words(uint32_t* to, const uint32_t (&words)[count]) {
#pragma unroll
  for (int k = 0; k < count; k += 2)
    *reinterpret_cast<TwoWords*>(to + k) = {words[k], words[k + 1]};
}

// Writes the whole window, word (row, column) of channel c at (row * columns + column) * pitch + c.
// A thread stays with one unit of channels, so that most of what it asks is asked once.
template <class Words>
EA_DEVICE void stage(const Side& side, const Window& window, uint32_t* to) {
  const int units = side.width / unit, together = threads / units;
  const int place = threadIdx.x / units, first = unit * (threadIdx.x % units);
  if (place >= together) return;
  const int down = together / window.columns, across = together % window.columns;
  int row = place / window.columns, column = place % window.columns;
  const int channel = side.first + first;
  int own = channel;
  const Image& image = image_of(side, own);
  const bool at_once = Words::takes(image) && is_run(image, own);
  uint32_t* out = to + place * pitch(side) + first;
#pragma unroll 1
  for (; row < window.rows; out += together * pitch(side)) {
    const int y = window.y + row * window.step_y, x = window.x + column * window.step_x;
    if (at_once) {
      uint32_t words[unit];
      Words::run(side, image, own, y, x, window.partner, words);
      put_words(out, words);
    } else {
#pragma unroll 1
      for (int k = 0; k < unit; k += Words::at_once) {
        uint32_t words[Words::at_once];
        Words::any(side, channel + k, y, x, window.partner, words);
        put_words(out + k, words);
      }
    }
    row += down;
    column += across;
    if (column >= window.columns) {
      column -= window.columns;
      ++row;
    }
  }
}

// What this thread adds to the sum over pixels of channel threadIdx.x % width: rows of the window,
// and columns of the first and of the second pixel of a word.
template <class Words>
EA_DEVICE float channel_sum(const Side& side, const Window& window, int rows, int low, int high,
                            const uint32_t* words) {
  const int parts = threads / side.width, part = threadIdx.x / side.width;
  if (part >= parts) return 0.0f;
  float sum = 0.0f;
  for (int row = part; row < rows; row += parts) {
    const uint32_t* p = words + row * window.columns * pitch(side) + threadIdx.x % side.width;
    for (int column = 0; column < larger(low, high); ++column, p += pitch(side))
      sum += Words::sum(*p, column < low, column < high);
  }
  return sum;
}

}  // namespace weight_grad
}  // namespace edgeadapt
