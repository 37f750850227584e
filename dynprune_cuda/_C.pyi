# SPDX-License-Identifier: Apache-2.0
"""The compiled module: loading it registers the operators; its constants say what was built.

The others are names, separated by spaces, in the order of the numbers that the operators use.
"""

TORCH_VERSION: str
CUDA_VERSION: str  # empty when built for the CPU only
CUDA_ARCHITECTURES: str  # as in TORCH_CUDA_ARCH_LIST
COMPILER: str

RANKINGS: str
SCORES: str
REDUCTIONS: str
ROW_REDUCTIONS: str
GRADIENT_TIMES: str
STEP_COLUMNS: str
SAVED_COLUMNS: str
