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


def test_the_callback_serves_pytorch_lightning_where_lightning_is_not():
    """The older name of the same framework, with its own Trainer."""
    pytest.importorskip("pytorch_lightning")
    code = WITHOUT.format(names=["lightning"]) + SCRIPT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "70"


SCRIPT = """
import pytorch_lightning, torch
from torch.utils.data import DataLoader, TensorDataset
from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.integrations.lightning import PrunerCallback

class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def training_step(self, batch, number):
        return pruner.cross_entropy(self.net(batch[0]), batch[1], batch[2])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

pruner = Pruner(50, 0.4)
sampler = pruner.batch_sampler(8)
loader = DataLoader(
    IndexedDataset(TensorDataset(torch.randn(50, 3), torch.arange(50) % 2)), batch_sampler=sampler
)
trainer = pytorch_lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    callbacks=[PrunerCallback(sampler)],
    reload_dataloaders_every_n_epochs=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Module(), loader)
print(int(pruner.table.count.sum()))
"""
