# SPDX-License-Identifier: Apache-2.0
"""Pruners inside training frameworks; importing this imports none of them.

`lightning`, `transformers`, `accelerate` and `timm` are one module per framework, each of which
needs the package of its name.
"""
