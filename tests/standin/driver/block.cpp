#include "block.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "fiber.h"

namespace standin {

namespace {

constexpr unsigned NO_THREAD = ~0u;
constexpr size_t SHARED_ALIGNMENT = 128;

struct Worker {
  Fiber fiber;
  unsigned number;
  unsigned thread = NO_THREAD;  // the thread it runs
  bool idle = true;  // between blocks
  Place place{};  // where that thread waits
  uint32_t mask = 0;  // of the collective it waits in; 0 at a barrier
};

// Threads in waiting order; each block thread is in it at most once.
class ReadyQueue {
 public:
  void clear() { first_ = last_ = 0; }
  bool empty() const { return first_ == last_; }
  void push(Worker* worker) { workers_[last_++ % MAX_THREADS] = worker; }
  void push_first(Worker* worker) { workers_[--first_ % MAX_THREADS] = worker; }
  Worker* pop() { return workers_[first_++ % MAX_THREADS]; }

 private:
  Worker* workers_[MAX_THREADS];
  unsigned first_ = 0, last_ = 0;
};

// A warp's collective over one mask. Two rounds are kept: lanes read one while faster ones begin the next.
struct Collective {
  uint32_t mask;
  uint32_t arrived = 0;
  unsigned round = 0;
  Place place{};
  Exchange exchanges[2];
  std::vector<Worker*> waiting;
};

struct Warp {
  uint32_t gone;  // lanes that ended, or lie beyond the block
  unsigned waiting;
  Collective* recent;  // most warps use one mask throughout
  std::deque<Collective> collectives;  // a deque: lanes keep references to elements
};

struct Barrier {
  std::vector<Worker*> waiting;
  Place place{};
  Combine combine = Combine::NONE;
  unsigned true_predicates = 0;
  int result = 0;
};

BlockLaunch launch;
unsigned* thread_index;  // the module's threadIdx
Index block_index;
unsigned threads;  // of the block
unsigned begun;  // threads that have begun
unsigned ended;  // threads that have ended
unsigned any_ended;  // one of them
bool one_dimensional;
std::vector<unsigned> thread_order;  // empty: forward
Order order;
uint64_t shuffles;
std::string failure;

Fiber scheduler;
std::deque<Worker> workers;
std::vector<Worker*> idle;
Worker* current;
ReadyQueue ready;
Warp warps[MAX_THREADS / WARP_SIZE];
Barrier barrier;
char* dynamic_shared_memory = nullptr;

Index index_of(unsigned thread) {
  const Index& size = launch.block;
  return {thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)};
}

std::string text(Index index) {
  char buffer[48];
  snprintf(buffer, sizeof buffer, "(%u, %u, %u)", index.x, index.y, index.z);
  return buffer;
}

std::string text(const Place& place) {
  return std::string(place.intrinsic) + " at " + place.file + ":" + std::to_string(place.line);
}

std::string hex(uint32_t mask) {
  char buffer[16];
  snprintf(buffer, sizeof buffer, "0x%08x", mask);
  return buffer;
}

void set(unsigned* variable, Index index) {
  variable[0] = index.x;
  variable[1] = index.y;
  variable[2] = index.z;
}

void resume(Worker* worker) {
  current = worker;
  if (one_dimensional) {
    thread_index[0] = worker->thread;
  } else {
    set(thread_index, index_of(worker->thread));
  }
}

// Ends the launch. The fibers of the block are abandoned where they are.
[[noreturn]] void fail(const std::string& what) {
  failure = "thread " + text(index_of(current->thread)) + ": " + what;
  switch_fiber(current->fiber, scheduler);
  abort();  // nothing switches back to a fiber that was abandoned
}

void run_threads() {
  entered();
  for (;;) {
    launch.function->kernel->run(launch.arguments);
    Worker* self = current;
    self->idle = true;
    idle.push_back(self);
    switch_fiber(self->fiber, scheduler);
  }
}

Worker* idle_worker() {
  if (idle.empty()) {
    const auto number = static_cast<unsigned>(workers.size());
    Worker& worker = workers.emplace_back();
    worker.number = number;
    allocate_stack(worker.fiber, number);
    begin(worker.fiber, run_threads);
    idle.push_back(&worker);
  }
  Worker* worker = idle.back();
  idle.pop_back();
  worker->idle = false;
  worker->thread = NO_THREAD;
  return worker;
}

// What can run next: a thread that waits no more, else threads that have not begun; null if there are neither.
Worker* next_worker() {
  if (!ready.empty()) return ready.pop();
  return begun < threads ? idle_worker() : nullptr;
}

// Lets others run until the current thread is taken from the ready queue.
void wait_here(const Place& place, uint32_t mask) {
  Worker* self = current;
  self->place = place;
  self->mask = mask;
  Worker* next = next_worker();
  if (next != self) {
    if (next != nullptr) current = next;
    switch_fiber(self->fiber, next != nullptr ? next->fiber : scheduler);
  }
  resume(self);
}

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && a.intrinsic == b.intrinsic && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

bool complete(const Warp& warp, const Collective& collective) {
  return (collective.mask & ~(collective.arrived | warp.gone)) == 0;
}

Collective* collective_of(Warp& warp, uint32_t mask) {
  if (warp.recent != nullptr && warp.recent->mask == mask) return warp.recent;
  for (Collective& collective : warp.collectives) {
    if (collective.mask == mask) return warp.recent = &collective;
  }
  warp.recent = &warp.collectives.emplace_back();
  warp.recent->mask = mask;
  return warp.recent;
}

void release(Warp& warp, Collective& collective) {
  collective.exchanges[collective.round & 1].lanes = collective.arrived;
  collective.arrived = 0;
  ++collective.round;
  warp.waiting -= static_cast<unsigned>(collective.waiting.size());
  // In one of the orders a warp runs ahead of the others as far as it can, up to the next barrier.
  const bool ahead = order.kind == OrderKind::BACKWARD;
  for (Worker* worker : collective.waiting) ahead ? ready.push_first(worker) : ready.push(worker);
  collective.waiting.clear();
}

void end_thread(unsigned thread) {
  ++ended;
  any_ended = thread;
  Warp& warp = warps[thread / WARP_SIZE];
  warp.gone |= 1u << thread % WARP_SIZE;
  if (!barrier.waiting.empty()) {
    fail("ended without reaching the barrier " + text(barrier.place) + ", where thread " +
         text(index_of(barrier.waiting.front()->thread)) + " waits");
  }
  if (warp.waiting == 0) return;
  for (Collective& collective : warp.collectives) {
    if (collective.arrived != 0 && complete(warp, collective)) release(warp, collective);
  }
}

bool next_thread() {
  Worker* self = current;
  if (self->thread != NO_THREAD) end_thread(self->thread);
  if (begun == threads) {
    self->thread = NO_THREAD;
    return false;
  }
  self->thread = thread_order.empty() ? begun : thread_order[begun];
  ++begun;
  resume(self);
  return true;
}

int combined(Combine combine, unsigned true_predicates) {
  switch (combine) {
    case Combine::COUNT: return static_cast<int>(true_predicates);
    case Combine::ALL: return true_predicates == threads;
    case Combine::ANY: return true_predicates != 0;
    case Combine::NONE: break;
  }
  return 0;
}

int wait_at_barrier(const Place& place, Combine combine, int predicate) {
  if (ended != 0)
    fail("waits at the barrier " + text(place) + ", but thread " + text(index_of(any_ended)) +
         " ended without reaching it");
  if (barrier.waiting.empty()) {
    barrier.place = place;
    barrier.combine = combine;
    barrier.true_predicates = 0;
  } else if (!same_place(barrier.place, place)) {
    fail("waits at the barrier " + text(place) + ", but thread " + text(index_of(barrier.waiting.front()->thread)) +
         " at the barrier " + text(barrier.place));
  }
  barrier.true_predicates += predicate != 0;
  barrier.waiting.push_back(current);
  if (barrier.waiting.size() == threads) {
    barrier.result = combined(combine, barrier.true_predicates);
    if (order.kind == OrderKind::SHUFFLED) {
      Random random(order.seed + ++shuffles);
      shuffle(barrier.waiting, random);
    }
    for (Worker* worker : barrier.waiting) ready.push(worker);
    barrier.waiting.clear();
  }
  wait_here(place, 0);
  return barrier.result;
}

const Exchange* exchange(const Place& place, uint32_t mask, uint64_t value) {
  const unsigned lane = current->thread % WARP_SIZE;
  const uint32_t bit = 1u << lane;
  Warp& warp = warps[current->thread / WARP_SIZE];
  if ((mask & bit) == 0)
    fail(text(place) + ": its mask " + hex(mask) + " lacks the calling lane " + std::to_string(lane));
  Collective* collective = collective_of(warp, mask);
  if (collective->arrived == 0) {
    collective->place = place;
  } else if (collective->place.intrinsic != place.intrinsic &&
             strcmp(collective->place.intrinsic, place.intrinsic) != 0) {
    fail("calls " + text(place) + " while other lanes of its mask call " + text(collective->place));
  }
  Exchange& result = collective->exchanges[collective->round & 1];
  result.values[lane] = value;
  collective->arrived |= bit;
  if (complete(warp, *collective)) {
    release(warp, *collective);
  } else {
    collective->waiting.push_back(current);
    ++warp.waiting;
    wait_here(place, mask);
  }
  return &result;
}

void fail_at(const Place& place, const char* message) { fail(text(place) + ": " + message); }

void* dynamic_shared() { return dynamic_shared_memory; }

// Says who waits where when no thread can go on.
std::string deadlock() {
  constexpr unsigned SHOWN = 4;
  std::string message = "deadlock: no thread can go on";
  unsigned shown = 0, waiting = 0;
  for (const Worker& worker : workers) {
    if (worker.idle || worker.thread == NO_THREAD) continue;
    ++waiting;
    bool repeated = false;
    for (const Worker& before : workers) {
      if (&before == &worker) break;
      repeated = repeated || (!before.idle && before.mask == worker.mask && same_place(before.place, worker.place));
    }
    if (repeated || shown++ >= SHOWN) continue;
    message += "; thread " + text(index_of(worker.thread)) + " waits in " + text(worker.place);
    if (worker.mask != 0) message += " with mask " + hex(worker.mask);
  }
  return message + "; " + std::to_string(waiting) + " of " + std::to_string(threads) + " threads wait, " +
         std::to_string(ended) + " ended";
}

void abandon_workers() {
  for (Worker& worker : workers) {
    if (worker.idle) continue;
    begin(worker.fiber, run_threads);
    worker.idle = true;
    idle.push_back(&worker);
  }
}

void begin_block(Index block, size_t number) {
  block_index = block;
  set(launch.function->module->interface->block_index, block);
  begun = ended = 0;
  ready.clear();
  barrier.waiting.clear();
  for (unsigned first = 0; first < threads; first += WARP_SIZE) {
    Warp& warp = warps[first / WARP_SIZE];
    const unsigned lanes = threads - first;
    warp.gone = lanes >= WARP_SIZE ? 0 : ~0u << lanes;
    warp.waiting = 0;
    for (Collective& collective : warp.collectives) {
      collective.arrived = 0;
      collective.waiting.clear();
    }
  }
  for (const SharedArray& array : launch.function->module->shared_arrays) memset(array.start, POISON, array.bytes);
  if (dynamic_shared_memory != nullptr) memset(dynamic_shared_memory, POISON, launch.dynamic_shared_bytes);
  if (order.kind == OrderKind::SHUFFLED) fill_in_order(thread_order, threads, order, number);
}

}  // namespace

const Services services = {next_thread, wait_at_barrier, exchange, dynamic_shared, fail_at};

void begin_launch(const BlockLaunch& next) {
  launch = next;
  threads = launch.block.x * launch.block.y * launch.block.z;
  one_dimensional = launch.block.y == 1 && launch.block.z == 1;
  const Module& module = *launch.function->module->interface;
  set(module.grid_size, launch.grid);
  set(module.block_size, launch.block);
  thread_index = module.thread_index;
  set(thread_index, {0, 0, 0});
  order = settings.thread_order;
  shuffles = 0;
  thread_order.clear();
  if (order.kind != OrderKind::FORWARD) fill_in_order(thread_order, threads, order, 0);
  free(dynamic_shared_memory);
  dynamic_shared_memory = nullptr;
  if (launch.dynamic_shared_bytes != 0) {
    void* memory = nullptr;
    if (posix_memalign(&memory, SHARED_ALIGNMENT, launch.dynamic_shared_bytes) != 0) abort();
    dynamic_shared_memory = static_cast<char*>(memory);
  }
  for (Warp& warp : warps) {
    warp.recent = nullptr;
    warp.collectives.clear();
  }
  adopt_thread(scheduler);
}

bool run_block(Index block, size_t number, std::string& message) {
  begin_block(block, number);
  failure.clear();
  while (failure.empty()) {
    Worker* worker = next_worker();
    if (worker == nullptr) break;
    current = worker;
    switch_fiber(scheduler, worker->fiber);
  }
  if (failure.empty() && ended < threads) failure = deadlock();
  if (failure.empty()) return true;
  abandon_workers();
  message = "kernel " + std::string(launch.function->kernel->name) + ", block " + text(block_index) + ", " + failure;
  return false;
}

}  // namespace standin
