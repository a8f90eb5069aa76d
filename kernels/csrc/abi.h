// What Python and the kernels agree on. A kernel is one C++ function; a program is an array of calls,
// each a kernel's address and its arguments: plain structs of 8-byte fields (int64_t, double or a
// pointer), mirrored field by field in kernels/<op>.py.
#pragma once

#include <cstdint>

namespace edgeadapt {

// Types of elements. BF16 is the upper half of a float32, rounded to nearest even; BOOL is a byte.
enum Dtype : int64_t { F32 = 0, BF16 = 1, BOOL = 2 };

class Team;

// Arguments are read-only: a call can be run any number of times.
using Kernel = void (*)(const void* arguments, Team& team);

// Bytes of working memory that a call needs when `threads` threads run it; looks at sizes only, so
// that it can be asked before any pointer is known.
using Scratch = int64_t (*)(const void* arguments, int64_t threads);

struct Entry {
  const char* name;
  Kernel run;
  Scratch scratch;
  int64_t argument_bytes;  // sizeof the struct: compared with Python's when the library is opened
};

// Where a kernel file says what it offers, once, inside namespace edgeadapt::EA_LEVEL; `stem` is the
// file's name: EA_ENTRIES(conv, {"conv", conv, conv_scratch, sizeof(ConvArgs)}, {"pack", ...})
#define EA_ENTRIES(stem, ...)                            \
  extern const Entry stem##_entries[] = {__VA_ARGS__};   \
  extern const int64_t stem##_entry_count = sizeof stem##_entries / sizeof(Entry)

struct Call {
  Kernel run;
  const void* arguments;
};

}  // namespace edgeadapt
