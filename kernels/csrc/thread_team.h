// Teams of threads, for library.cpp.
#pragma once

#include "team.h"

namespace edgeadapt {

int64_t now_ns();

// Null if the system gives us no more threads.
Team* create_team(int64_t size);
void destroy_team(Team* team);

// For the length of a program: two of them at once would mix their tasks.
void lock_team(Team* team);
void unlock_team(Team* team);

}  // namespace edgeadapt
