# SPDX-License-Identifier: Apache-2.0
"""The compiled module: loading it registers the operators; its constants say what was built."""

TORCH_VERSION: str
CUDA_VERSION: str  # empty when built for the CPU only
CUDA_ARCHITECTURES: str  # as in TORCH_CUDA_ARCH_LIST
COMPILER: str
RANKINGS: str  # names of the rankings that ops take as numbers, in order, space-separated
