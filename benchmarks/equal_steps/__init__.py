# SPDX-License-Identifier: Apache-2.0
"""Does a policy beat full data at the same cost? Runs of equal steps, and their report."""
