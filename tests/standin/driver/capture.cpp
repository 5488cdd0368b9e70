// Captures and the graphs that are made of them.
#include <set>

#include "streams.h"

namespace standin {

namespace {

std::set<Graph*> graphs;  // executable ones too: they are the same here
bool in_replay = false;

}  // namespace

bool replaying() { return in_replay; }

DRIVER_API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode) {
  Lock lock;
  Stream* stream;
  if (CUresult bad = find_stream("cuStreamBeginCapture", handle, stream)) return bad;
  if (stream == nullptr)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamBeginCapture: the null stream cannot capture");
  if (stream->capture) return error(CUDA_ERROR_ILLEGAL_STATE, "cuStreamBeginCapture: the stream captures already");
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->seen.clear();
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  Lock lock;
  *graph = nullptr;
  Stream* stream;
  if (CUresult bad = find_stream("cuStreamEndCapture", handle, stream)) return bad;
  if (stream == nullptr || !stream->capture)
    return error(CUDA_ERROR_ILLEGAL_STATE, "cuStreamEndCapture: the stream does not capture");
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "cuStreamEndCapture: another stream began this capture");
  bool joined = true;
  for (const auto& [other, count] : capture->recorded) joined = joined && stream->seen[other] >= count;
  capture->origin = nullptr;
  leave(capture);
  if (!capture->valid)
    return error(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                 "cuStreamEndCapture: a refused operation made the capture invalid");
  if (!joined)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                 "cuStreamEndCapture: the capture's first stream does not wait for all work of another");
  Graph* made = capture->graph.release();
  graphs.insert(made);
  *graph = reinterpret_cast<CUgraph>(made);
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  Lock lock;
  Stream* stream;
  if (CUresult bad = find_stream("cuStreamIsCapturing", handle, stream)) return bad;
  *status = stream == nullptr || !stream->capture ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->valid              ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                                  : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  Lock lock;
  const auto* known = reinterpret_cast<Graph*>(graph);
  if (graphs.count(const_cast<Graph*>(known)) == 0) return CUDA_ERROR_INVALID_HANDLE;
  auto* made = new Graph(*known);
  graphs.insert(made);
  *executable = reinterpret_cast<CUgraphExec>(made);
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  Lock lock;
  auto* graph = reinterpret_cast<Graph*>(executable);
  if (graphs.count(graph) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult bad = require_context("cuGraphLaunch")) return bad;
  if (CUresult bad = refuse_on_capturing("cuGraphLaunch", stream)) return bad;
  CUresult result = CUDA_SUCCESS;
  in_replay = true;
  for (const Work& work : graph->work) {
    result = work();
    if (result != CUDA_SUCCESS) break;
  }
  in_replay = false;
  return result;
}

namespace {

CUresult destroy_graph(void* handle) {
  Lock lock;
  auto* graph = static_cast<Graph*>(handle);
  if (graphs.erase(graph) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete graph;
  return CUDA_SUCCESS;
}

}  // namespace

DRIVER_API cuGraphExecDestroy(CUgraphExec executable) { return destroy_graph(executable); }
DRIVER_API cuGraphDestroy(CUgraph graph) { return destroy_graph(graph); }

}  // namespace standin
