# SPDX-License-Identifier: Apache-2.0
"""What a scored training step costs, and how accurate its scores are."""
