# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, batches and saved states; every error names the argument and the value."""
