// SPDX-License-Identifier: Apache-2.0
// cudaError_t and cudaStream_t for launcher contracts: all that a caller of a kernel needs of CUDA.
#pragma once

#if defined(DYNPRUNE_EMULATOR)
#include "simt.h"
#else
#include <cuda_runtime_api.h>
#endif
