# SPDX-License-Identifier: Apache-2.0
"""How long a selection takes, beside other ways to select."""
