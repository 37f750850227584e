# SPDX-License-Identifier: Apache-2.0
"""A comparison of all methods over keeps and seeds, and its report."""
