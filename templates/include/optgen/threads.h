// The threads of a pass, which share its loops: OpenMP's where the compiler has it, else those of threads_own.h.
#pragma once

#include <stdint.h>

#if !defined(_OPENMP)
#include <optgen/threads_own.h>
#else

namespace optgen {

struct Team {
  // Runs a body for every number below `count`, and waits until all threads have.
  template <class Body> void each(int64_t count, const Body& body) const {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) body(i);
  }
};

// Runs `work` on each of so many threads.
template <class Work> inline void with_threads(int threads, const Work& work) {
#pragma omp parallel num_threads(threads)
  work(Team{});
}

}  // namespace optgen

#endif
