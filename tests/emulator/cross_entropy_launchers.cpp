// SPDX-License-Identifier: Apache-2.0
// The launchers of the cross-entropy of classes, and of score updates, with C names.
#include "kernels/scoring/scored_cross_entropy.h"
#include "kernels/scoring/scored_cross_entropy_step.h"
#include "kernels/scoring/update_scores.h"

using namespace dynprune;

extern "C" {

int emulated_scored_cross_entropy(const CrossEntropyInput* input, const CrossEntropyOutput* output,
                                  ErrorRecord* errors) {
  return cuda::launch_scored_cross_entropy(*input, *output, errors, nullptr);
}
int emulated_scored_cross_entropy_backward(const CrossEntropyInput* input,
                                           const CrossEntropyGradient* gradient) {
  return cuda::launch_scored_cross_entropy_backward(*input, *gradient, nullptr);
}
size_t emulated_scored_cross_entropy_step_workspace_bytes(const CrossEntropyInput* input,
                                                          int64_t max_ids) {
  return cuda::scored_cross_entropy_step_workspace_bytes(*input, max_ids);
}
int emulated_scored_cross_entropy_step(const CrossEntropyInput* input,
                                       const CrossEntropyOutput* output,
                                       const CrossEntropyStep* step, const ScoreUpdate* update,
                                       void* workspace, unsigned* ticket, ErrorRecord* errors) {
  return cuda::launch_scored_cross_entropy_step(*input, *output, *step, *update, workspace, ticket,
                                                errors, nullptr);
}
int emulated_scale_gradient(void* grad_logits, int type, int64_t rows, int64_t classes,
                            const void* grad_loss, int64_t grad_loss_stride,
                            const void* grad_scale) {
  return cuda::launch_scale_gradient(grad_logits, static_cast<ScalarType>(type), rows, classes,
                                     grad_loss, grad_loss_stride, grad_scale, nullptr);
}

size_t emulated_update_scores_workspace_bytes(int64_t max_ids) {
  return cuda::update_scores_workspace_bytes(max_ids);
}
int emulated_update_scores(const ScoreUpdate* update, void* workspace, ErrorRecord* errors) {
  return cuda::launch_update_scores(*update, workspace, errors, nullptr);
}
}
