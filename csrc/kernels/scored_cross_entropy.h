// SPDX-License-Identifier: Apache-2.0
// scored_cross_entropy: per-sample loss, EL2N, entropy, margin and correctness from one read of the
// logits, and the gradient of the losses from another.
#pragma once

#include "primitives/cuda_types.h"
#include "primitives/error_flags.h"
#include "primitives/scalar_types.h"

namespace dynprune {

// A = float, or double for float64 logits.
struct CrossEntropyInput {
  const void* logits;  // [B, C] of type
  ScalarType type;
  int64_t batch_size;        // B
  int64_t num_classes;       // C
  int64_t row_stride;        // elements between rows; a row is contiguous
  IndexArray target;         // [B]
  const void* class_weight;  // [C] of A, or null
  double label_smoothing;    // in [0, 1]
  int64_t ignore_index;
};

struct CrossEntropyOutput {
  void* loss;     // [B] of A
  void* el2n;     // [B] of A
  void* entropy;  // [B] of A, nats
  void* margin;   // [B] of A
  bool* correct;  // [B]
  void* saved;    // [B, 4] of A, for the backward launcher: SavedRow
};

struct CrossEntropyGradient {
  const void* grad_loss;     // [B] of A
  int64_t grad_loss_stride;  // 0 for one gradient shared by all rows
  const void* saved;         // [B, 4] of A
  void* grad_logits;         // [B, C] of the input's type, contiguous, out
};

namespace cuda {

// An ignored row has loss and scores 0. A row whose target is out of range is recorded in errors
// ([kNumDataErrors], may be null): its loss and scores are NaN, its gradient is 0, nothing else is
// touched.
cudaError_t launch_scored_cross_entropy(const CrossEntropyInput& input,
                                        const CrossEntropyOutput& output, ErrorRecord* errors,
                                        cudaStream_t stream);
cudaError_t launch_scored_cross_entropy_backward(const CrossEntropyInput& input,
                                                 const CrossEntropyGradient& gradient,
                                                 cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
