// A team of threads that take tasks from one counter. Compiled once, for the baseline.
//
// A job is its fields, written by the caller, and `remaining`, stored last. Whoever decrements
// `remaining` from t > 0 owns task `tasks - t`, and only then reads the fields: they cannot change
// before that task is counted in `done`. A worker that comes late finds t <= 0 and nothing else.
#include "thread_team.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include <atomic>
#include <new>

namespace edgeadapt {
namespace {

// Gaps between the calls of a program are shorter; waking a sleeping thread costs about as much.
constexpr int64_t spin_ns = 20000;

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` does nothing on most cores
#endif
}

// Calls ready() until it says yes or time is up; returns what it said last.
template <class Ready>
bool spin(Ready ready) {
  const int64_t end = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (now_ns() < end);
  return ready();
}

class Threads final : public Team {
 public:
  int64_t size() const override { return size_; }
  void run(int64_t tasks, Task body, void* context) override;
  void work(int64_t thread);

  struct Worker {
    Threads* team;
    int64_t thread;
    pthread_t handle;
  };

  int64_t size_ = 1;  // the caller, and the workers that were started
  Worker* workers_ = nullptr;
  pthread_mutex_t use_ = PTHREAD_MUTEX_INITIALIZER;  // one program at a time
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER;
  std::atomic<bool> stop_{false};

 private:
  int64_t take_tasks(int64_t thread);
  void sleep();

  Task body_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  // Lines of their own: each is written by threads that do not want the others.
  alignas(64) std::atomic<int64_t> remaining_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int64_t> sleepers_{0};
};

int64_t Threads::take_tasks(int64_t thread) {
  int64_t count = 0;
  for (int64_t t; (t = remaining_.fetch_sub(1, std::memory_order_acq_rel)) > 0; ++count)
    body_(context_, tasks_ - t, thread);
  return count;
}

void Threads::run(int64_t tasks, Task body, void* context) {
  if (size_ == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  body_ = body;
  context_ = context;
  tasks_ = tasks;
  done_.store(0, std::memory_order_relaxed);
  // Sequentially consistent, as in sleep(): either we see the sleeper or it sees the tasks.
  remaining_.store(tasks);
  if (sleepers_.load() > 0) {
    pthread_mutex_lock(&mutex_);
    pthread_cond_broadcast(&wake_);
    pthread_mutex_unlock(&mutex_);
  }
  const int64_t others = tasks - take_tasks(0);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == others; };
  // A worker that the system has put aside needs a core to finish on: offer ours.
  while (!spin(finished)) sched_yield();
}

void Threads::sleep() {
  pthread_mutex_lock(&mutex_);
  sleepers_.fetch_add(1);
  while (remaining_.load() <= 0 && !stop_.load()) pthread_cond_wait(&wake_, &mutex_);
  sleepers_.fetch_sub(1);
  pthread_mutex_unlock(&mutex_);
}

void Threads::work(int64_t thread) {
  const auto awaited = [&] {
    return remaining_.load(std::memory_order_relaxed) > 0 || stop_.load(std::memory_order_relaxed);
  };
  while (!stop_.load()) {
    if (!spin(awaited)) sleep();
    if (const int64_t count = take_tasks(thread)) done_.fetch_add(count, std::memory_order_release);
  }
}

void* start(void* worker) {
  const auto* self = static_cast<Threads::Worker*>(worker);
  self->team->work(self->thread);
  return nullptr;
}

}  // namespace

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

// malloc instead of `new`: the library then needs no libstdc++ and opens in no time.
Team* create_team(int64_t size) {
  void* memory = nullptr;
  if (size < 1 || posix_memalign(&memory, 64, sizeof(Threads))) return nullptr;
  auto* team = new (memory) Threads;
  team->workers_ = static_cast<Threads::Worker*>(calloc(size, sizeof(Threads::Worker)));
  bool complete = team->workers_ != nullptr;
  while (complete && team->size_ < size) {
    Threads::Worker& worker = team->workers_[team->size_];
    worker.team = team;
    worker.thread = team->size_;
    complete = pthread_create(&worker.handle, nullptr, start, &worker) == 0;
    if (complete) ++team->size_;
  }
  if (complete) return team;
  destroy_team(team);
  return nullptr;
}

void destroy_team(Team* base) {
  auto* team = static_cast<Threads*>(base);
  pthread_mutex_lock(&team->mutex_);
  team->stop_.store(true);
  pthread_cond_broadcast(&team->wake_);
  pthread_mutex_unlock(&team->mutex_);
  for (int64_t i = 1; i < team->size_; ++i) pthread_join(team->workers_[i].handle, nullptr);
  free(team->workers_);
  free(team);
}

void lock_team(Team* team) { pthread_mutex_lock(&static_cast<Threads*>(team)->use_); }

void unlock_team(Team* team) { pthread_mutex_unlock(&static_cast<Threads*>(team)->use_); }

}  // namespace edgeadapt
