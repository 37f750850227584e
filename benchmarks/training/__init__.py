# SPDX-License-Identifier: Apache-2.0
"""Whether pruned training reaches the accuracy of full training, and in what time."""
