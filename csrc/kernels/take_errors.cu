// SPDX-License-Identifier: Apache-2.0
// A copy and a memset would lose what another stream records between them.
#include "kernels/take_errors.h"

#include "device/launch.h"

namespace dynprune {
namespace cuda {
namespace {

__global__ void take_errors_kernel(ErrorRecord* errors, int64_t* taken) {
  ErrorRecord& record = errors[threadIdx.x];
  const unsigned long long count = atomicExch(&record.count, 0ull);
  __threadfence();
  taken[2 * threadIdx.x] = static_cast<int64_t>(count);
  // Read as it was written, for another block may be writing it.
  taken[2 * threadIdx.x + 1] = count == 0 ? 0 : static_cast<int64_t>(atomicAdd(&record.example, 0));
}

}  // namespace

cudaError_t launch_take_errors(ErrorRecord* errors, int64_t* taken, cudaStream_t stream) {
  DYNPRUNE_LAUNCH((take_errors_kernel), 1, kNumDataErrors, 0, stream, errors, taken);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
