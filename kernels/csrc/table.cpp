// What one level offers: the entries of every kernel file. operations.h is written by build.py and
// has one line EA_OPERATION(stem) for each.
#include "table.h"

namespace edgeadapt {
namespace EA_LEVEL {

#define EA_OPERATION(stem)             \
  extern const Entry stem##_entries[]; \
  extern const int64_t stem##_entry_count;
#include "operations.h"
#undef EA_OPERATION

extern const Operation operations[] = {
#define EA_OPERATION(stem) {stem##_entries, &stem##_entry_count},
#include "operations.h"
#undef EA_OPERATION
    {nullptr, nullptr}};

}  // namespace EA_LEVEL
}  // namespace edgeadapt
