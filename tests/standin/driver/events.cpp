#include <chrono>
#include <set>

#include "streams.h"

namespace standin {

namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  Context* context;
  bool recorded = false;
  Clock::time_point time;
  std::shared_ptr<Capture> capture;  // of the stream on which it was recorded
  Progress seen;
};

std::set<Event*> events;

Event* find(CUevent handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  return events.count(event) != 0 ? event : nullptr;
}

void merge(Progress& into, const Progress& from) {
  for (const auto& [stream, count] : from) into[stream] = std::max(into[stream], count);
}

}  // namespace

DRIVER_API cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  Lock lock;
  const Event* event = find(event_handle);
  if (event == nullptr) return error(CUDA_ERROR_INVALID_HANDLE, "cuStreamWaitEvent: no such event");
  Stream* stream;
  if (CUresult bad = find_stream("cuStreamWaitEvent", handle, stream)) return bad;
  if (stream == nullptr)
    return any_capture() ? refuse("cuStreamWaitEvent", "the null stream cannot wait for it") : CUDA_SUCCESS;
  if (event->capture == stream->capture) {
    merge(stream->seen, event->seen);
    return CUDA_SUCCESS;
  }
  if (stream->capture) {
    stream->capture->valid = false;
    return error(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                 "cuStreamWaitEvent: the event was not recorded in this stream's capture");
  }
  if (event->capture->origin == nullptr) return CUDA_SUCCESS;  // that capture has ended
  stream->capture = event->capture;
  stream->seen = event->seen;
  return CUDA_SUCCESS;
}

DRIVER_API cuEventCreate(CUevent* event, unsigned) {
  Lock lock;
  if (CUresult bad = require_context("cuEventCreate")) return bad;
  auto* made = new Event{current_context(), false, {}, nullptr, {}};
  events.insert(made);
  *event = reinterpret_cast<CUevent>(made);
  return CUDA_SUCCESS;
}

DRIVER_API cuEventDestroy_v2(CUevent handle) {
  Lock lock;
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  events.erase(event);
  delete event;
  return CUDA_SUCCESS;
}

DRIVER_API cuEventRecord(CUevent handle, CUstream stream_handle) {
  Lock lock;
  Event* event = find(handle);
  if (event == nullptr) return error(CUDA_ERROR_INVALID_HANDLE, "cuEventRecord: no such event");
  Stream* stream;
  if (CUresult bad = find_stream("cuEventRecord", stream_handle, stream)) return bad;
  if (event->context != current_context()) {
    return error(CUDA_ERROR_INVALID_HANDLE, "cuEventRecord: the event belongs to another context");
  }
  if (stream == nullptr && any_capture()) return refuse("cuEventRecord", "the null stream cannot be recorded");
  event->recorded = true;
  event->time = Clock::now();
  event->capture = stream == nullptr ? nullptr : stream->capture;
  event->seen = stream == nullptr ? Progress{} : stream->seen;
  return CUDA_SUCCESS;
}

namespace {

CUresult require_finished(const char* function, CUevent handle) {
  Lock lock;
  const Event* event = find(handle);
  if (event == nullptr) return error(CUDA_ERROR_INVALID_HANDLE, "%s: no such event", function);
  if (!event->capture) return CUDA_SUCCESS;
  event->capture->valid = false;
  return error(CUDA_ERROR_CAPTURED_EVENT, "%s: the event was recorded in a capture", function);
}

CUresult elapsed(float* milliseconds, CUevent from_handle, CUevent to_handle) {
  Lock lock;
  const Event* from = find(from_handle);
  const Event* to = find(to_handle);
  if (from == nullptr || to == nullptr || !from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return CUDA_SUCCESS;
}

}  // namespace

DRIVER_API cuEventQuery(CUevent event) { return require_finished("cuEventQuery", event); }
DRIVER_API cuEventSynchronize(CUevent event) { return require_finished("cuEventSynchronize", event); }

#undef cuEventElapsedTime  // cuda.h of CUDA 13 makes it a name for the next
DRIVER_API cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
  return elapsed(milliseconds, from, to);
}
DRIVER_API cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) { return elapsed(milliseconds, from, to); }

}  // namespace standin
