# SPDX-License-Identifier: Apache-2.0
"""What selection and epochs cost with scores sharded over ranks: measured, and in a model."""
