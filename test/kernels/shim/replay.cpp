// Runs one launch that was written to a file, in a process of its own, as the sanitizers need it.
//
//   replay <file>   The file, little-endian: shim::Launch without pointers (grid, block, dynamic bytes, seed, poison as ten
//                   uint32), the kernel's name (uint32 length, bytes), the number of arguments (uint32), and of each: 1 for
//                   an array, 0 for a value, its bytes (uint64 length, bytes). Arrays are written back in place.
//                   Exit status 3 and a line "launch failed: ..." where the launch fails.
#include "cuda_shim.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace {

template <class T>
T take(FILE* file) {
  T value;
  if (fread(&value, sizeof value, 1, file) != 1) abort();
  return value;
}

struct Argument {
  bool is_array;
  long place;
  size_t bytes;
  void* memory;  // of exactly `bytes`, so that the first byte past it is caught
};

}  // namespace

int main(int, char** argv) {
  FILE* file = fopen(argv[1], "r+b");
  if (!file) return 2;
  shim::Launch launch{};
  for (auto& n : launch.grid) n = take<uint32_t>(file);
  for (auto& n : launch.block) n = take<uint32_t>(file);
  launch.dynamic_bytes = take<uint32_t>(file);
  launch.seed = take<uint32_t>(file);
  launch.poison = take<uint32_t>(file);
  take<uint32_t>(file);  // reserved
  std::string name(take<uint32_t>(file), '\0');
  for (auto& c : name) c = take<char>(file);
  std::vector<Argument> arguments(take<uint32_t>(file));
  std::vector<void*> pointers;
  for (auto& argument : arguments) {
    argument.is_array = take<uint32_t>(file) != 0;
    argument.bytes = take<uint64_t>(file);
    argument.place = ftell(file);
    argument.memory = malloc(argument.bytes);
    if (fread(argument.memory, 1, argument.bytes, file) != argument.bytes) abort();
  }
  for (auto& argument : arguments) pointers.push_back(argument.is_array ? static_cast<void*>(&argument.memory) : argument.memory);
  launch.args = pointers.data();

  using Entry = const char* (*)(const shim::Launch*);
  const auto entry = reinterpret_cast<Entry>(dlsym(RTLD_DEFAULT, (name + "__launch").c_str()));
  if (!entry) return 2;
  if (const char* error = entry(&launch)) {
    fprintf(stderr, "launch failed: %s\n", error);
    return 3;
  }
  for (const auto& argument : arguments) {
    if (!argument.is_array) continue;
    fseek(file, argument.place, SEEK_SET);
    fwrite(argument.memory, 1, argument.bytes, file);
  }
  return fclose(file);
}
