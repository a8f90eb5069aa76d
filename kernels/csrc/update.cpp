// The optimiser's step over flat arrays of weights, gradients and step sizes.
#include "simd.h"
#include "tensor.h"
#include "team.h"
namespace edgeadapt {
namespace EA_LEVEL {
namespace {
struct SgdArgs {
  float* weights; const float* gradients; const int64_t* begins; const int64_t* counts; const double* step_sizes; int64_t segments;
};
void sgd(const void* arguments, Team&) {
  const auto& a = *static_cast<const SgdArgs*>(arguments);
  for (int64_t s = 0; s < a.segments; ++s)
    for (int64_t i = a.begins[s]; i < a.begins[s] + a.counts[s]; ++i) a.weights[i] -= (float)a.step_sizes[s] * a.gradients[i];
}
int64_t no_scratch(const void*, int64_t) { return 0; }
}
EA_ENTRIES(update, {"sgd", sgd, no_scratch, sizeof(SgdArgs)});
}
}
