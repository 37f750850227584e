# SPDX-License-Identifier: Apache-2.0
"""Pruners inside training frameworks; importing this imports none of them.

`lightning`, `transformers` and `accelerate` are one module per framework, each of which needs the
package of its name.
"""
