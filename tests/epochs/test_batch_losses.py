# SPDX-License-Identifier: Apache-2.0
"""observe() of a whole batch's value: who gets it, with which alpha, and the warning."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable

N = 20


def expected_warning(is_expected, message):
    """A context that demands the warning, or, as warnings are errors here, that there is none."""
    return pytest.warns(RuntimeWarning, match=message) if is_expected else nullcontext()


def test_a_scalar_batch_loss_is_credited_to_every_sample_of_the_batch(device):
    """The moving average over the batches that a sample was in."""
    pruner = Pruner(N, 0.5, alpha=0.5, device=device)
    for ids, loss in (([0, 1, 2], 4.0), ([0, 3], 1.0), ([1, 3], 8.0)):
        value = torch.tensor(loss, device=device, requires_grad=True)
        with expected_warning(loss == 4.0, "these are averaged with alpha=0.5$"):
            pruner.observe(torch.tensor(ids), value)
    assert pruner.table.mean[:4].tolist() == [2.5, 6.0, 4.0, 4.5]
    assert pruner.table.count[:4].tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("policy", ["ucb", "infobatch"])
def test_a_batch_loss_enters_with_a_small_alpha_unless_one_is_given(device, policy):
    keep = None if policy == "infobatch" else 0.5
    for given in (None, 0.5):
        pruner = Pruner(N, keep, policy, alpha=given, device=device)
        default = pruner.table.alpha
        used = 0.1 if given is None else given
        ids = torch.tensor([1, 2], device=device)
        with pytest.warns(RuntimeWarning, match=rf"these are averaged with alpha={used}$"):
            pruner.observe(ids, torch.tensor(4.0, device=device))
        pruner.observe(ids, torch.tensor(8.0, device=device))  # the warning comes once
        pruner.observe(ids[:1], torch.tensor([16.0], device=device))
        second = (1 - used) * 4 + used * 8
        expected = torch.tensor([(1 - default) * second + default * 16, second])
        torch.testing.assert_close(pruner.table.mean[ids].cpu(), expected)
        assert pruner.table.alpha == default


def test_a_batch_of_one_sample_is_no_whole_batch(device):
    pruner = Pruner(N, 0.5, device=device)
    for value in (4.0, 8.0):
        pruner.observe(torch.tensor([3]), torch.tensor(value, device=device))
    assert float(pruner.table.mean[3]) == pytest.approx(0.2 * 4 + 0.8 * 8)


@pytest.mark.parametrize("row_reduction", ["mean", "sum", "max", 0.5])
def test_an_id_that_occurs_twice_gets_the_value_once(device, row_reduction):
    pruner = Pruner(N, 0.5, alpha=1.0, row_reduction=row_reduction, device=device)
    with pytest.warns(RuntimeWarning):
        pruner.observe(torch.tensor([3, 0, 3, -1, 3]), torch.tensor(4.0, device=device))
    pruner.observe(torch.tensor([3, 0, 3], dtype=torch.uint8), torch.tensor(4.0, device=device))
    assert pruner.table.mean[[0, 3]].tolist() == [4, 4]
    assert pruner.table.count[[0, 3]].tolist() == [2, 2] and int(pruner.table.count.sum()) == 4


def test_sharded_scores_take_batch_losses_with_the_alpha_of_the_pruner(device):
    for given, message in ((None, r"alpha=0.8, .*: pass Pruner\(alpha=0.1\)"), (0.1, "alpha=0.1$")):
        pruner = Pruner(N, 0.5, alpha=given, sharding="shard", warmup_epochs=4, device=device)
        ids = torch.tensor([1, 2], device=device)
        with pytest.warns(RuntimeWarning, match=message):
            pruner.observe(ids, torch.tensor(4.0, device=device))
        pruner.observe(ids, torch.tensor(8.0, device=device))
        pruner.set_epoch(1)
        alpha = given or 0.8
        expected = torch.full((2,), (1 - alpha) * 4 + alpha * 8)
        torch.testing.assert_close(pruner.table.mean[ids].cpu(), expected)
        with pytest.raises(ValueError, match=r"alpha must be left out .* got 0.3"):
            pruner.table.update(ids, torch.ones(2, device=device), alpha=0.3)


def test_an_alpha_of_one_update(device):
    table = ScoreTable(4, device=device)
    ids = torch.tensor([0, 2], device=device)
    table.update(ids, torch.tensor([1.0, 2.0], device=device), alpha=0.25)
    table.update(ids, torch.tensor([5.0, 6.0], device=device), alpha=0.25)
    assert table.mean[ids].tolist() == [2.0, 3.0] and table.variance[ids].tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got 0"):
        table.update(ids, torch.ones(2, device=device), alpha=0)
    assert table.mean[ids].tolist() == [2.0, 3.0]


def test_the_small_alpha_survives_a_copy_and_a_resume(device):
    pruner = Pruner(N, 0.5, device=device)
    ids = torch.arange(N, device=device)
    pruner.observe(ids, torch.ones(N, device=device))
    pruner.set_epoch(0)
    resumed = Pruner(N, 0.5, device=device)
    resumed.load_state_dict(pruner.state_dict())
    for other in (resumed, copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        with pytest.warns(RuntimeWarning, match="alpha=0.1$"):
            other.observe(ids, torch.tensor(11.0, device=device))
        assert other.table.mean.tolist() == pytest.approx([2.0] * N)
