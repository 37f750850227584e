// SPDX-License-Identifier: Apache-2.0
// The launchers of the binary cross-entropy with C names and flat arguments, for ctypes.
#include "kernels/scoring/binary_cross_entropy.h"

using namespace dynprune;

extern "C" {

int emulated_scored_binary_cross_entropy(const BinaryInput* input, const CrossEntropyOutput* output,
                                         ErrorRecord* errors) {
  return cuda::launch_scored_binary_cross_entropy(*input, *output, errors, nullptr);
}
int emulated_scored_binary_cross_entropy_backward(const BinaryInput* input,
                                                  const BinaryGradient* gradient) {
  return cuda::launch_scored_binary_cross_entropy_backward(*input, *gradient, nullptr);
}
size_t emulated_scored_binary_cross_entropy_step_workspace_bytes(const BinaryInput* input) {
  return cuda::scored_binary_cross_entropy_step_workspace_bytes(*input);
}
int emulated_scored_binary_cross_entropy_step(const BinaryInput* input,
                                              const CrossEntropyOutput* output,
                                              const CrossEntropyStep* step,
                                              const ScoreUpdate* update, void* workspace,
                                              unsigned* ticket, ErrorRecord* errors) {
  return cuda::launch_scored_binary_cross_entropy_step(*input, *output, *step, *update, workspace,
                                                       ticket, errors, nullptr);
}
}
