# SPDX-License-Identifier: Apache-2.0
"""Shared by all folders: timing, machine information, records, result files, plots."""
