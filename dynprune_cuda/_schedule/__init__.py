# SPDX-License-Identifier: Apache-2.0
"""What is due when, and with which seed: pure functions of numbers."""
