// Streams, and what is put on them.
//
// Work runs when it is put on a stream, before the call returns; so streams carry no order of their own, and waiting is
// immediate. A stream that captures runs nothing: its work is kept, in the order of the calls, for replays.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "contexts.h"

namespace standin {

using Work = std::function<CUresult()>;

struct Stream;

// How much of the work of each stream of a capture is known to come before something.
using Progress = std::map<const Stream*, size_t>;

struct Graph {
  std::vector<Work> work;
};

// A capture that goes on. Streams join it by waiting for an event of one that is in it.
struct Capture {
  std::unique_ptr<Graph> graph = std::make_unique<Graph>();
  Stream* origin = nullptr;
  Progress recorded;
  bool valid = true;
};

struct Stream {
  Context* context;
  std::shared_ptr<Capture> capture;  // null: work runs
  Progress seen;
};

// Finds the stream of a handle: null for the null stream. Refuses streams of another context.
CUresult find_stream(const char* function, CUstream handle, Stream*& stream);

// Runs `work`, or keeps it if the stream captures. The null stream is refused while any stream captures.
CUresult enqueue(const char* function, CUstream stream, Work work);

// Whether work put on the stream is kept; refuses as `enqueue` does.
CUresult begin_work(const char* function, CUstream stream, Graph*& graph);

// Refuses what may not be done on a stream that captures, or on the null stream while any does.
CUresult refuse_on_capturing(const char* function, CUstream stream);

// Refuses what may not be done while any stream captures.
CUresult refuse_in_capture(const char* function);

// Refuses what captures forbid, and makes those that go on invalid.
CUresult refuse(const char* function, const char* why);

bool any_capture();

// Takes every stream out of a capture.
void leave(const std::shared_ptr<Capture>& capture);

// True while a captured graph is replayed.
bool replaying();

}  // namespace standin
