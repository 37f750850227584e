# SPDX-License-Identifier: Apache-2.0
"""Nothing of a framework is imported unless asked for, and its absence is told by name."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in {names}:
    sys.modules[name] = None
"""


@pytest.mark.parametrize(
    ("module", "missing", "advice"),
    [
        ("lightning", ["lightning", "pytorch_lightning"], "pip install lightning"),
        ("accelerate", ["accelerate"], "pip install accelerate"),
        ("transformers", ["transformers"], "pip install 'transformers[torch]'"),
    ],
)
def test_a_missing_framework_is_named(module, missing, advice):
    code = WITHOUT.format(names=missing) + f"import dynprune_cuda.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: dynprune_cuda.integrations.{module} needs " in done.stderr
    assert advice in done.stderr


def test_the_package_imports_no_framework():
    code = (
        "import sys, dynprune_cuda, dynprune_cuda.integrations\n"
        "names = ('lightning', 'pytorch_lightning', 'transformers', 'accelerate')\n"
        "assert not [name for name in names if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
