// The threads that share a kernel's work. One team belongs to one engine; the calling thread is its
// first member, the others sleep between programs.
#pragma once

#include <cstdint>

namespace edgeadapt {

// Body of a parallel loop: `task` in [0, tasks), `thread` in [0, size): which scratch is its own.
using Task = void (*)(void* context, int64_t task, int64_t thread);

class Team {
 public:
  virtual int64_t size() const = 0;
  // Runs every task once, on whichever thread is free, and returns when all are done. What is added
  // up over tasks must be added in the order of tasks, not of threads: results may not depend on
  // the number of threads.
  virtual void run(int64_t tasks, Task body, void* context) = 0;

 protected:
  ~Team() = default;
};

// Calls body(task, thread) for every task.
template <class Body>
static inline void parallel(Team& team, int64_t tasks, Body body) {
  team.run(
      tasks,
      [](void* context, int64_t task, int64_t thread) { (*static_cast<Body*>(context))(task, thread); },
      &body);
}

}  // namespace edgeadapt
