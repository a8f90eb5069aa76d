// The entries of one kernel file; a level's table of them ends with nulls.
#pragma once

#include "abi.h"

namespace edgeadapt {

struct Operation {
  const Entry* entries;
  const int64_t* count;
};

}  // namespace edgeadapt
