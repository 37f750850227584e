// SPDX-License-Identifier: Apache-2.0
// The launchers of the ops with probabilities as targets; as launchers.cpp.
#include "kernels/scoring/soft_cross_entropy.h"

using namespace dynprune;

extern "C" {

int emulated_soft_cross_entropy(const CrossEntropyInput* input, const SoftTarget* target,
                                const CrossEntropyOutput* output) {
  return cuda::launch_soft_cross_entropy(*input, *target, *output, nullptr);
}
int emulated_soft_cross_entropy_backward(const CrossEntropyInput* input, const SoftTarget* target,
                                         const CrossEntropyGradient* gradient) {
  return cuda::launch_soft_cross_entropy_backward(*input, *target, *gradient, nullptr);
}
size_t emulated_soft_cross_entropy_step_workspace_bytes(const CrossEntropyInput* input,
                                                        int64_t max_ids) {
  return cuda::soft_cross_entropy_step_workspace_bytes(*input, max_ids);
}
int emulated_soft_cross_entropy_step(const CrossEntropyInput* input, const SoftTarget* target,
                                     const CrossEntropyOutput* output, const CrossEntropyStep* step,
                                     const ScoreUpdate* update, void* workspace, unsigned* ticket,
                                     ErrorRecord* errors) {
  return cuda::launch_soft_cross_entropy_step(*input, *target, *output, *step, *update, workspace,
                                              ticket, errors, nullptr);
}

}  // extern "C"
