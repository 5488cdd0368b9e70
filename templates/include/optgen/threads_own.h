// Threads without OpenMP, which Apple's compiler lacks: each kernel has some that wait for its next pass. Included by
// threads.h.
//
// They are started when a pass first asks for them and never end. A forked process, which has none of them, starts its
// own. While one pass has them, another that runs at the same time does with its own thread alone.
#pragma once

#if !defined(_WIN32)
#include <pthread.h>
#endif
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace optgen {

class Barrier {
 public:
  void wait(int threads) {
    std::unique_lock<std::mutex> lock(mutex);
    const uint64_t before = rounds;
    if (++waiting == threads) {
      waiting = 0;
      ++rounds;
      all_there.notify_all();
    }
    all_there.wait(lock, [&] { return rounds != before; });
  }

 private:
  std::mutex mutex;
  std::condition_variable all_there;
  int waiting = 0;
  uint64_t rounds = 0;
};

// A thread's place among those that run a pass.
struct Team {
  int place, threads;
  Barrier* barrier;

  // Runs a body for every number below `count`, and waits until all threads have.
  template <class Body> void each(int64_t count, const Body& body) const {
    const int64_t end = count * (place + 1) / threads;
    for (int64_t i = count * place / threads; i < end; ++i) body(i);
    if (threads > 1) barrier->wait(threads);
  }
};

class Pool {
 public:
  template <class Work> void run(int threads, const Work& work) {
    std::unique_lock<std::mutex> mine(in_use, std::try_to_lock);
    if (threads < 2 || !mine.owns_lock()) {
      work(Team{0, 1, nullptr});
      return;
    }
    start(threads - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      job = [](const void* of, const Team& team) { (*static_cast<const Work*>(of))(team); };
      job_of = &work;
      job_threads = threads < started + 1 ? threads : started + 1;
      ++jobs;
    }
    next.notify_all();
    take_part(0);
  }

 private:
  std::mutex in_use, mutex;
  std::condition_variable next;
  Barrier barrier;
  int started = 0, job_threads = 0;
  uint64_t jobs = 0;
  void (*job)(const void*, const Team&) = nullptr;
  const void* job_of = nullptr;

  // So many, or as many as the system gives.
  void start(int count) {
    try {
      for (; started < count; ++started) std::thread(&Pool::serve, this, started + 1, jobs).detach();
    } catch (const std::system_error&) {
    }
  }

  void serve(int place, uint64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        next.wait(lock, [&] { return jobs != seen; });
        seen = jobs;
        if (place >= job_threads) continue;
      }
      take_part(place);
    }
  }

  // Returns once all threads are done, since the job is its caller's.
  void take_part(int place) {
    const int threads = job_threads;
    job(job_of, Team{place, threads, &barrier});
    barrier.wait(threads);
  }
};

inline std::atomic<Pool*> pool{nullptr};
#if !defined(_WIN32)  // where there are no forks
static const int forgotten_in_children = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
#endif

// Runs `work` on each of so many threads, or of fewer.
template <class Work> inline void with_threads(int threads, const Work& work) {
  Pool* own = pool;
  if (own == nullptr) {
    Pool* const made = new Pool;
    if (pool.compare_exchange_strong(own, made))
      own = made;
    else
      delete made;
  }
  own->run(threads, work);
}

}  // namespace optgen
