// SPDX-License-Identifier: Apache-2.0
// Shared memory for the rows of kernels with probabilities as targets.
#pragma once

#include "device/grid.h"
#include "kernels/scoring/soft_rows.cuh"
#include "kernels/scoring/step_task.cuh"

namespace dynprune {
namespace cuda {

struct SoftPlan {
  unsigned blocks;
  int64_t row_bytes;    // of shared memory per row; 0: rows are read again
  int64_t block_bytes;  // of all rows of a block

  template <class Row>
  static SoftPlan of(const CrossEntropyInput& in) {
    return SoftPlan(Row::kRows, Row::row_bytes(in.num_classes), in.batch_size);
  }
  bool needs_allowance() const { return block_bytes > kBytesWithoutOptIn; }

 private:
  SoftPlan(int rows_per_block, int64_t bytes, int64_t rows)
      : blocks(rows == 0 ? 1 : blocks_for(rows, kThreads / rows_per_block)) {
    const int64_t limit = static_cast<int64_t>(shared_memory_limit()) - kStaticBytes;
    const int64_t most = limit < kMaxStagedBytes ? limit : kMaxStagedBytes;
    row_bytes = bytes * rows_per_block <= most ? bytes : 0;
    block_bytes = row_bytes * rows_per_block;
  }
};

}  // namespace cuda
}  // namespace dynprune
