# SPDX-License-Identifier: Apache-2.0
"""How fast a sampler delivers ids, and how much memory it takes."""
