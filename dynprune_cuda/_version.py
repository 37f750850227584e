# SPDX-License-Identifier: Apache-2.0
"""The version; pyproject.toml reads it from here."""

__version__ = "0.3.0.dev0"
