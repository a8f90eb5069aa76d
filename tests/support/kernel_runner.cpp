// Runs one kernel call that a test wrote to a file (kernel_runner.py), for CPUs that have no Python
// here: under an emulator, or on a device.
//
//     kernel_runner --levels           the levels of this CPU, one a line
//     kernel_runner REQUEST ANSWER
//
// Both files are int64_t and bytes as they lie in memory. REQUEST: level and kernel (64 bytes each,
// padded with 0), threads, bytes of arguments, offset of their field `scratch` or -1, number of
// pointers, number of buffers; the arguments; for each pointer its offset in the arguments, which
// buffer, offset therein; for each buffer its address modulo 64 and its size, then its bytes. ANSWER:
// the buffers' bytes afterwards.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "abi.h"

using namespace edgeadapt;

extern "C" {
const char* ea_level(int64_t index);
const Entry* ea_entry(const char* level, int64_t index);
Team* ea_create_team(int64_t size);
void ea_run(const Call* calls, int64_t count, Team* team, int64_t* nanoseconds);
void ea_destroy_team(Team* team);
}

namespace {

constexpr int64_t guard = 512;

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "kernel_runner: %s\n", what);
  exit(1);
}

struct Header {
  char level[64], kernel[64];
  int64_t threads, argument_bytes, scratch, pointers, buffers;
};

struct Pointer {
  int64_t place, buffer, offset;
};

struct Buffer {
  int64_t alignment, size;
};

template <class T>
std::vector<T> read(FILE* file, int64_t count) {
  std::vector<T> values(count);
  if ((int64_t)fread(values.data(), sizeof(T), count, file) != count) fail("the request ends early");
  return values;
}

char* allocate(int64_t size) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size)) fail("no memory");
  return static_cast<char*>(memory);
}

const Entry& find(const Header& header) {
  for (int64_t i = 0; const Entry* entry = ea_entry(header.level, i); ++i) {
    if (strcmp(entry->name, header.kernel)) continue;
    if (entry->argument_bytes != header.argument_bytes) fail("the arguments have another size");
    return *entry;
  }
  fail("no such kernel at this level");
}

// Runs the call with scratch memory of NaN between guards.
void run(const Entry& entry, const Header& header, char* arguments) {
  const int64_t size = entry.scratch(arguments, header.threads);
  char* scratch = allocate(size + 2 * guard);
  memset(scratch, 0xff, size + 2 * guard);
  const void* usable = scratch + guard;
  if (size && header.scratch < 0) fail("the arguments have no field `scratch`");
  if (size) memcpy(arguments + header.scratch, &usable, sizeof usable);
  Team* team = ea_create_team(header.threads);
  const Call call = {entry.run, arguments};
  ea_run(&call, 1, team, nullptr);
  ea_destroy_team(team);
  for (int64_t i = 0; i < guard; ++i)
    if ((scratch[i] & scratch[guard + size + i] & 0xff) != 0xff) fail("written outside of scratch");
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && !strcmp(words[1], "--levels")) {
    for (int64_t i = 0; const char* level = ea_level(i); ++i) puts(level);
    return 0;
  }
  FILE* file = count == 3 ? fopen(words[1], "rb") : nullptr;
  if (!file) fail("usage: kernel_runner --levels | REQUEST ANSWER");
  const Header header = read<Header>(file, 1)[0];
  auto arguments = read<int64_t>(file, header.argument_bytes / 8);
  const auto pointers = read<Pointer>(file, header.pointers);
  const auto buffers = read<Buffer>(file, header.buffers);
  std::vector<char*> memory;
  for (const Buffer& buffer : buffers) {
    memory.push_back(allocate(buffer.size + 64) + buffer.alignment);
    const auto bytes = read<char>(file, buffer.size);
    memcpy(memory.back(), bytes.data(), buffer.size);
  }
  fclose(file);
  for (const Pointer& pointer : pointers)
    arguments[pointer.place / 8] = (int64_t)(memory[pointer.buffer] + pointer.offset);
  run(find(header), header, reinterpret_cast<char*>(arguments.data()));
  file = fopen(words[2], "wb");
  if (!file) fail("cannot write the answer");
  for (size_t i = 0; i < buffers.size(); ++i) fwrite(memory[i], 1, buffers[i].size, file);
  return fclose(file) ? 1 : 0;
}
