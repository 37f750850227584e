# SPDX-License-Identifier: Apache-2.0
"""Programs that measure dynprune_cuda. README.md lists the question that each one answers."""
