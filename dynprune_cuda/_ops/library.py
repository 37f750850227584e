# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled module, which registers the operators."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch

OLDEST_TORCH = (2, 11)


def _load() -> ModuleType:
    """Imports the compiled module, or says what is wrong with this installation."""
    running = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if running < OLDEST_TORCH:
        raise ImportError(
            f"dynprune_cuda needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, and torch "
            f"{torch.__version__} is installed. Install a newer torch, then dynprune_cuda again."
        )
    try:
        return importlib.import_module("dynprune_cuda._C")
    except ModuleNotFoundError as error:
        if error.name != "dynprune_cuda._C":
            raise
        raise ImportError(
            "the compiled module dynprune_cuda._C is missing: the package was not built. Run "
            "`pip install --no-build-isolation .` in the source tree, and import it from outside "
            "that tree (or install with -e)."
        ) from error
    except ImportError as error:
        raise ImportError(
            f"the compiled module dynprune_cuda._C cannot be loaded with torch {torch.__version__} "
            f"(CUDA {torch.version.cuda or 'none'}); it was built for another torch. Build it "
            "again with `pip install --no-build-isolation --force-reinstall --no-deps .`. "
            f"The loader says: {error}"
        ) from error


compiled = _load()
ops = torch.ops.dynprune_cuda
