// What the driver reads of a module's image itself.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace standin {

// A variable of the image that is zero at first, by its symbol and its place relative to the image's load address.
struct ImageVariable {
  std::string symbol;
  size_t offset;
  size_t bytes;
};

// The size of an ELF shared object of this machine in memory; 0 if `image` is something else. The driver is given no
// size; the table of sections ends the image.
size_t image_bytes(const void* image);

// The image's variables that are zero at first and belong to a function: in C++ these have symbols beginning with _ZZ.
std::vector<ImageVariable> function_variables(const void* image);

}  // namespace standin
