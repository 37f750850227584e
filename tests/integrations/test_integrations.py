# SPDX-License-Identifier: Apache-2.0
"""Nothing of a framework is imported unless asked for, and its absence is told by name."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ALONE = """
import importlib, sys
import dynprune_cuda.integrations
names = ("lightning", "pytorch_lightning", "transformers", "timm", "accelerate")
print([name for name in names if name in sys.modules])
sys.modules.update(dict.fromkeys(names[:4]))  # as if they were not there
for module in ("lightning", "transformers", "accelerate", "timm"):
    sys.modules["accelerate"] = None
    if module == "transformers":
        del sys.modules["accelerate"]
    try:
        importlib.import_module("dynprune_cuda.integrations." + module)
    except ImportError as error:
        print(error)
    sys.modules.pop("dynprune_cuda.integrations.accelerate", None)
"""


def test_no_framework_is_imported_unasked_and_a_missing_one_is_named():
    pytest.importorskip("accelerate")
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "dynprune_cuda.integrations.lightning needs Lightning: pip install lightning",
        "dynprune_cuda.integrations.transformers needs Transformers and Accelerate: "
        "pip install 'transformers[torch]'",
        "dynprune_cuda.integrations.accelerate needs Accelerate: pip install accelerate",
        "dynprune_cuda.integrations.timm needs timm with its training tasks: "
        "pip install 'timm>=1.0.28'",
    ]


def test_the_callback_serves_pytorch_lightning_where_lightning_is_not():
    """The older name of the same framework, with its own Trainer."""
    pytest.importorskip("pytorch_lightning")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "70"


SCRIPT = """
import sys
sys.modules["lightning"] = None  # as if it were not there
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
