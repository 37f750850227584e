# SPDX-License-Identifier: Apache-2.0
"""timm's losses per sample: each is timm's own loss of that sample alone, and their mean timm's."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm.task")
import timm.loss
from timm.loss import (
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)

from dynprune_cuda.integrations.timm_losses import row_losses

ROWS, CLASSES = 33, 5


class Mine(LabelSmoothingCrossEntropy):
    def forward(self, x, target):
        return super().forward(2 * x, target)


def targets(kind):
    generator = torch.Generator().manual_seed(1)
    if kind == "index":
        return torch.randint(CLASSES, (ROWS,), generator=generator)
    soft = torch.rand(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return soft / soft.sum(1, keepdim=True) if kind == "soft" else (soft > 0.6).double()


def newer(name, *args, **options):
    """A loss that not every version has."""
    return (
        (lambda: getattr(timm.loss, name)(*args, **options)) if hasattr(timm.loss, name) else None
    )


POSITIVE = torch.arange(1, CLASSES + 1).double()
CASES = [
    (nn.CrossEntropyLoss, "index"),
    (nn.CrossEntropyLoss, "soft"),
    (lambda: nn.CrossEntropyLoss(label_smoothing=0.2), "index"),
    (lambda: LabelSmoothingCrossEntropy(0.1), "index"),
    (SoftTargetCrossEntropy, "soft"),
    (BinaryCrossEntropy, "index"),
    (BinaryCrossEntropy, "soft"),
    (lambda: BinaryCrossEntropy(0.0, target_threshold=0.2), "soft"),
    (lambda: BinaryCrossEntropy(sum_classes=True, pos_weight=POSITIVE), "index"),
    (lambda: BinaryCrossEntropy(weight=POSITIVE), "index"),
    (nn.BCEWithLogitsLoss, "multi"),
    (lambda: JsdCrossEntropy(3, smoothing=0.1), "index"),
    (lambda: JsdCrossEntropy(3, smoothing=0.0), "index"),
    (AsymmetricLossMultiLabel, "multi"),
    (AsymmetricLossSingleLabel, "index"),
    (newer("PolyCrossEntropy", smoothing=0.1), "index"),
    (newer("PolyBinaryCrossEntropy", gamma=1.0), "multi"),
    (newer("PolyBinaryCrossEntropy", reduction="batchmean"), "multi"),
    (newer("DistributionBalancedLoss", [3, 4, 5, 6, 7], 40), "multi"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_row_has_the_loss_that_it_has_alone(number):
    make, kind = CASES[number]
    if make is None:
        pytest.skip("not in this version of timm")
    criterion = make().double()
    if isinstance(criterion, AsymmetricLossMultiLabel) and not hasattr(criterion, "reduction"):
        pytest.skip("sums over the batch in this version of timm")
    output = torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=torch.Generator())
    output, again = output.clone().requires_grad_(), output.clone().requires_grad_()
    target = targets(kind)
    reduction = getattr(criterion, "reduction", None)
    losses = row_losses(criterion)(output, target)
    splits = getattr(criterion, "num_splits", 1)
    samples = ROWS // splits
    assert losses.shape == (samples,)
    own = torch.stack(
        [criterion(output[i::samples].detach(), target[i::samples]) for i in range(samples)]
    )
    tolerance = {"rtol": 1e-6, "atol": 1e-7}  # some of timm's losses compute in float32
    torch.testing.assert_close(losses.detach(), own, check_dtype=False, **tolerance)
    losses.mean().backward()
    criterion(again, target).backward()
    torch.testing.assert_close(output.grad, again.grad, **tolerance)
    assert getattr(criterion, "reduction", None) == reduction


REFUSED = [
    (newer("TwoWayLoss"), TypeError, "a mean over samples that is known here, got TwoWayLoss"),
    (lambda: Mine(0.1), TypeError, "got Mine. Pass prune_task"),
    (lambda: nn.functional.cross_entropy, TypeError, "got function. Pass prune_task"),
    (lambda: BinaryCrossEntropy(reduction="sum"), ValueError, "with reduction='sum'"),
    (lambda: nn.CrossEntropyLoss(POSITIVE), ValueError, "class weights"),
    (lambda: nn.CrossEntropyLoss(ignore_index=-1), ValueError, "ignore_index"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_loss_without_one_per_sample_is_refused(number):
    make, error, text = REFUSED[number]
    if make is None:
        pytest.skip("not in this version of timm")
    with pytest.raises(error, match=text):
        row_losses(make())
