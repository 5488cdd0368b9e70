#include "streams.h"

#include <set>

namespace standin {

namespace {

std::set<Stream*> streams;

}  // namespace

bool any_capture() {
  for (const Stream* stream : streams) {
    if (stream->capture) return true;
  }
  return false;
}

CUresult refuse(const char* function, const char* why) {
  for (Stream* stream : streams) {
    if (stream->capture) stream->capture->valid = false;
  }
  return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s: operation not permitted when a stream is capturing (%s)",
               function, why);
}

void leave(const std::shared_ptr<Capture>& capture) {
  for (Stream* stream : streams) {
    if (stream->capture == capture) {
      stream->capture = nullptr;
      stream->seen.clear();
    }
  }
}

CUresult find_stream(const char* function, CUstream handle, Stream*& stream) {
  stream = nullptr;
  if (handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) return CUDA_SUCCESS;
  auto* known = reinterpret_cast<Stream*>(handle);
  if (streams.count(known) == 0) {
    return error(CUDA_ERROR_INVALID_HANDLE, "%s: %p is not a stream, or it was destroyed", function,
                 static_cast<void*>(known));
  }
  if (current_context() != nullptr && known->context != current_context()) {
    return error(CUDA_ERROR_INVALID_HANDLE,
                 "%s: the stream belongs to a context of device %d, the current one is of device %d", function,
                 known->context->device, current_context()->device);
  }
  stream = known;
  return CUDA_SUCCESS;
}

CUresult refuse_in_capture(const char* function) {
  return any_capture() ? refuse(function, "it may wait for the device") : CUDA_SUCCESS;
}

CUresult refuse_on_capturing(const char* function, CUstream handle) {
  Stream* stream;
  if (CUresult bad = find_stream(function, handle, stream)) return bad;
  if (stream == nullptr && any_capture()) return refuse(function, "the null stream would run uncaptured");
  if (stream != nullptr && stream->capture) return refuse(function, "it cannot be captured");
  return CUDA_SUCCESS;
}

CUresult begin_work(const char* function, CUstream handle, Graph*& graph) {
  graph = nullptr;
  if (CUresult bad = require_context(function)) return bad;
  Stream* stream;
  if (CUresult bad = find_stream(function, handle, stream)) return bad;
  if (stream == nullptr) return any_capture() ? refuse(function, "the null stream would run uncaptured") : CUDA_SUCCESS;
  if (!stream->capture) return CUDA_SUCCESS;
  if (!stream->capture->valid)
    return error(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "%s: the capture is invalid", function);
  stream->seen[stream] = ++stream->capture->recorded[stream];
  graph = stream->capture->graph.get();
  return CUDA_SUCCESS;
}

CUresult enqueue(const char* function, CUstream stream, Work work) {
  Graph* graph;
  if (CUresult bad = begin_work(function, stream, graph)) return bad;
  if (graph == nullptr) return work();
  graph->work.push_back(std::move(work));
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSynchronize() {
  Lock lock;
  if (CUresult bad = require_context("cuCtxSynchronize")) return bad;
  return refuse_in_capture("cuCtxSynchronize");
}

DRIVER_API cuStreamCreate(CUstream* stream, unsigned) {
  Lock lock;
  if (CUresult bad = require_context("cuStreamCreate")) return bad;
  auto* made = new Stream{current_context(), nullptr, {}};
  streams.insert(made);
  *stream = reinterpret_cast<CUstream>(made);
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamDestroy_v2(CUstream handle) {
  Lock lock;
  auto* stream = reinterpret_cast<Stream*>(handle);
  if (streams.count(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) leave(stream->capture);
  streams.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamSynchronize(CUstream stream) {
  Lock lock;
  if (CUresult bad = require_context("cuStreamSynchronize")) return bad;
  return refuse_on_capturing("cuStreamSynchronize", stream);
}

DRIVER_API cuStreamQuery(CUstream stream) {
  Lock lock;
  if (CUresult bad = require_context("cuStreamQuery")) return bad;
  return refuse_on_capturing("cuStreamQuery", stream);
}

}  // namespace standin
