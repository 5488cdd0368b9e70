#include "state.h"

#include <cstdarg>
#include <cstdio>

namespace standin {

Settings settings;

namespace {

std::recursive_mutex driver_mutex;

struct Message {
  CUresult code = CUDA_SUCCESS;
  std::string text;
};
thread_local Message last_message;

const char* plain_text(CUresult code) {
  switch (code) {
    case CUDA_SUCCESS: return "no error";
    case CUDA_ERROR_INVALID_VALUE: return "invalid argument";
    case CUDA_ERROR_OUT_OF_MEMORY: return "out of memory";
    case CUDA_ERROR_NOT_INITIALIZED: return "initialization error";
    case CUDA_ERROR_INVALID_DEVICE: return "invalid device ordinal";
    case CUDA_ERROR_INVALID_IMAGE: return "device kernel image is invalid";
    case CUDA_ERROR_INVALID_CONTEXT: return "invalid device context";
    case CUDA_ERROR_INVALID_HANDLE: return "invalid resource handle";
    case CUDA_ERROR_NOT_FOUND: return "named symbol not found";
    case CUDA_ERROR_NOT_SUPPORTED: return "operation not supported by the stand-in for the CUDA driver";
    default: return "error of the stand-in for the CUDA driver";
  }
}

}  // namespace

Lock::Lock() { driver_mutex.lock(); }
Lock::~Lock() { driver_mutex.unlock(); }

CUresult error(CUresult code, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  last_message = {code, text};
  return code;
}

DRIVER_API cuGetErrorString(CUresult code, const char** text) {
  *text = last_message.code == code && code != CUDA_SUCCESS ? last_message.text.c_str() : plain_text(code);
  return CUDA_SUCCESS;
}

DRIVER_API cuGetErrorName(CUresult code, const char** text) {
  static thread_local std::string name;
  name = "CUresult " + std::to_string(static_cast<int>(code));
  *text = name.c_str();
  return CUDA_SUCCESS;
}

}  // namespace standin
