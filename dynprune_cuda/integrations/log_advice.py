# SPDX-License-Identifier: Apache-2.0
"""What a framework's callback says in the log when the training ends."""

from __future__ import annotations

import logging

from dynprune_cuda.pruner import Pruner

LOGGER = logging.getLogger("dynprune_cuda")


def log_advice(pruner: Pruner) -> None:
    """Logs `pruner.advice()` as a warning, if there is any. May wait.

    Args:
        pruner: At the end of the training; of one process, so that it is said once.
    """
    advice = pruner.advice()
    if advice is not None:
        LOGGER.warning("%s", advice)
