// A stand-in for NVRTC: what it is asked to compile goes to the stand-in for nvcc (NVCC, a path), as for NVRTC.
//
// It compiles the file of the program's name, whose text it is given, and has the headers of C and C++, so that it needs
// none of those that it is given; one that lacks a header which kernels include is an error, as for the real one.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};
constexpr int COMPILATION = 6;  // NVRTC_ERROR_COMPILATION
const char* const NEEDED[] = {"math.h", "stdint.h", "string.h", "type_traits"};

struct Program {
  std::string name, log, code;
  std::vector<std::string> headers;
};

std::string quoted(const std::string& word) {
  std::string made = "'";
  for (char c : word) made += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return made + "'";
}

std::string content(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

}  // namespace

API const char* nvrtcGetErrorString(int code) { return code == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "an error"; }

API int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}

API int nvrtcGetNumSupportedArchs(int* count) {
  *count = sizeof ARCHITECTURES / sizeof *ARCHITECTURES;
  return 0;
}

API int nvrtcGetSupportedArchs(int* archs) {
  for (int arch : ARCHITECTURES) *archs++ = arch;
  return 0;
}

API int nvrtcCreateProgram(Program** program, const char*, const char* name, int count, const char* const*,
                           const char* const* headers) {
  *program = new Program{name, "", "", {headers, headers + count}};
  return 0;
}

API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  for (const std::string needed : NEEDED) {
    bool is_given = false;
    for (const std::string& header : program->headers) is_given |= header == needed;
    if (!is_given) {
      program->log = program->name + "(1): catastrophic error: cannot open source file \"" + needed + "\"\n";
      return COMPILATION;
    }
  }
  char folder[] = "/tmp/standin-nvrtc-XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const std::string base = folder, output = base + "/out", log = base + "/log";
  std::string command = quoted(NVCC) + " --cubin -D__CUDACC_RTC__=1";
  bool is_for_device = false;
  for (int i = 0; i < count; ++i) {
    std::string option = options[i];
    is_for_device |= option == "-default-device";
    for (size_t at = 0; (at = option.find(',', at)) != std::string::npos; at += 2) option.replace(at, 1, "\\,");
    if (option != "-default-device") command += " " + quoted(option);
  }
  command += " -o " + quoted(output) + " " + quoted(program->name) + " > " + quoted(log) + " 2>&1";
  const int status = std::system(command.c_str());
  program->log = content(log);
  program->code = content(output);
  std::remove(output.c_str());
  std::remove(log.c_str());
  std::remove(folder);
  if (!is_for_device) program->log += "error: code for the host\n";
  return status == 0 && is_for_device ? 0 : COMPILATION;
}

API int nvrtcGetProgramLogSize(Program* program, size_t* size) {
  *size = program->log.size() + 1;
  return 0;
}

API int nvrtcGetProgramLog(Program* program, char* log) {
  program->log.copy(log, program->log.size());
  log[program->log.size()] = 0;
  return 0;
}

API int nvrtcGetCUBINSize(Program* program, size_t* size) {
  *size = program->code.size();
  return 0;
}

API int nvrtcGetCUBIN(Program* program, char* code) {
  program->code.copy(code, program->code.size());
  return 0;
}
