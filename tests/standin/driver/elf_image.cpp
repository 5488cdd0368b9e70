#include "elf_image.h"

#include <elf.h>
#include <link.h>

#include <cstring>

namespace standin {

namespace {

#if defined(__x86_64__)
constexpr unsigned MACHINE = EM_X86_64;
#elif defined(__aarch64__)
constexpr unsigned MACHINE = EM_AARCH64;
#else
#error "the stand-in for the CUDA driver runs on x86-64 and aarch64"
#endif

constexpr char FUNCTION_SCOPE[] = "_ZZ";

const ElfW(Ehdr) & header_of(const void* image) { return *static_cast<const ElfW(Ehdr)*>(image); }

}  // namespace

size_t image_bytes(const void* image) {
  const auto& header = header_of(image);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64) return 0;
  if (header.e_type != ET_DYN || header.e_machine != MACHINE) return 0;
  return header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
}

std::vector<ImageVariable> function_variables(const void* image) {
  const char* base = static_cast<const char*>(image);
  const auto& header = header_of(image);
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(base + header.e_shoff);
  std::vector<ImageVariable> found;
  for (size_t s = 0; s < header.e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(base + sections[s].sh_offset);
    const char* names = base + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; ++i) {
      const auto& symbol = symbols[i];
      const bool variable = (symbol.st_info & 0xf) == STT_OBJECT && symbol.st_shndx < header.e_shnum;
      if (!variable || sections[symbol.st_shndx].sh_type != SHT_NOBITS) continue;
      const char* name = names + symbol.st_name;
      if (strncmp(name, FUNCTION_SCOPE, strlen(FUNCTION_SCOPE)) == 0)
        found.push_back({name, symbol.st_value, symbol.st_size});
    }
  }
  return found;
}

}  // namespace standin
