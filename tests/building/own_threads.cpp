// Passes on threads of our own: every number once, in the loop's turn, by as many threads as are asked for.
#include <optgen/threads.h>
#include <set>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

using namespace optgen;

namespace {

constexpr int NUMBERS = 1000;

// A thousand passes of two loops, the second of which reads what the first wrote elsewhere; how often it was wrong.
int wrong_passes(int threads, int passes) {
  int wrong = 0;
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<int> first(NUMBERS), second(NUMBERS);
    with_threads(threads, [&](const Team& team) {
      team.each(NUMBERS, [&](int64_t i) { first[i] += int(i) + pass; });
      team.each(NUMBERS, [&](int64_t i) { second[i] += first[NUMBERS - 1 - i]; });
    });
    for (int i = 0; i < NUMBERS; ++i) wrong += second[i] != NUMBERS - 1 - i + pass;
  }
  return wrong;
}

int threads_seen(int threads) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  with_threads(threads, [&](const Team& team) {
    team.each(NUMBERS, [&](int64_t) {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
  });
  return int(seen.size());
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 5, 3}) {
    if (wrong_passes(threads, 300) != 0) return printf("wrong with %d threads\n", threads), 1;
    if (threads_seen(threads) != threads) return printf("not %d threads\n", threads), 2;
  }

  int wrong[4] = {};
  std::vector<std::thread> callers;
  for (int& of : wrong) callers.emplace_back([&of] { of = wrong_passes(3, 300); });
  for (std::thread& caller : callers) caller.join();
  for (const int of : wrong)
    if (of != 0) return puts("wrong with several callers"), 3;

  const pid_t child = fork();
  if (child == 0) _exit(wrong_passes(3, 10) == 0 && threads_seen(3) == 3 ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) return puts("wrong in a forked process"), 4;
  return wrong_passes(3, 10);
}
