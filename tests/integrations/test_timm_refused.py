# SPDX-License-Identifier: Apache-2.0
"""What `dynprune_cuda.integrations.timm` refuses; `test_timm.py` has what it does."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm.task")
import timm_script
from timm.data import FastCollateMixup, create_loader
from timm.loss import BinaryCrossEntropy
from timm.task import ClassificationTask
from timm_parts import BATCH, Images, N, Tiny

from dynprune_cuda import Pruner
from dynprune_cuda.integrations.timm import PrunedLoader, prune_task


def loader_of(size=N, **more):
    given = {"input_size": (3, 8, 8), "batch_size": BATCH, "is_training": True, "no_aug": True}
    given = {
        **given,
        "num_workers": 0,
        "device": torch.device("cpu"),
        "persistent_workers": False,
        **more,
    }
    return create_loader(Images(size), **given)


def task_of(criterion=None, kind=ClassificationTask, **more):
    return kind(Tiny(), criterion=criterion or nn.CrossEntropyLoss(), verbose=False, **more)


HALF = FastCollateMixup(mode="half", num_classes=3)
LOADERS = {
    "another length": ({"size": N + 1}, "dataset must have 41 samples, as the pruner, got"),
    "multi-epochs": ({"use_multi_epochs_loader": True}, "MultiEpochsDataLoader with _RepeatS"),
    "not shuffled": ({"is_training": False}, "must shuffle all samples.*SequentialSampler"),
    "half": ({"collate_fn": HALF}, "the mode of Mixup must keep the batch, got 'half'"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_that_chooses_in_its_own_way_is_refused(name):
    given, text = LOADERS[name]
    with pytest.raises(ValueError, match=text):
        PrunedLoader(loader_of(**given), Pruner(N, 0.3), accumulate=1)


def test_a_loader_of_several_sizes_is_refused():
    try:
        loader = loader_of(input_size_choices=[8, 16])
    except TypeError:
        pytest.skip("not in this version of timm")
    with pytest.raises(ValueError, match=r"ScheduledBatchSampler.*leave out .*--train-img-sizes"):
        PrunedLoader(loader, Pruner(N, 0.3), accumulate=1)


def test_arguments_of_a_wrong_type_are_refused():
    pruner = Pruner(N, 0.3)
    with pytest.raises(TypeError, match="pruner must be a Pruner, got int"):
        PrunedLoader(loader_of(), 3, accumulate=1)
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        PrunedLoader(loader_of(), pruner, accumulate=0)
    with pytest.raises(TypeError, match="dataset must be map-style"):
        PrunedLoader([], pruner, accumulate=1)
    loader = PrunedLoader(loader_of(), pruner, accumulate=1)
    with pytest.raises(TypeError, match="task must be a TrainingTask of timm with a criterion"):
        prune_task(nn.CrossEntropyLoss(), loader)
    with pytest.raises(TypeError, match="loader must be a PrunedLoader, got PrefetchLoader"):
        prune_task(task_of(), loader_of())
    task = task_of()
    prune_task(task, loader)
    with pytest.raises(ValueError, match="got one that scores already"):
        prune_task(task, loader)


def test_a_score_or_a_policy_that_the_task_cannot_serve_is_refused():
    def loader(**more):
        return PrunedLoader(loader_of(), Pruner(N, **more), accumulate=1)

    task = task_of(BinaryCrossEntropy())
    with pytest.raises(ValueError, match="score must be 'loss' for the criterion BinaryCross"):
        prune_task(task, loader(keep=0.3, score="el2n"))
    assert type(task.criterion) is BinaryCrossEntropy
    teacher = {"kind": timm_script.LogitDistillationTask, "teacher_model": Tiny(1)}
    with pytest.raises(ValueError, match=r"rescales the losses .* LogitDistillationTask adds"):
        prune_task(task_of(**teacher), loader(policy="infobatch"))
    # Cross-entropy has every score, of class indices and of probabilities.
    task, pruned = task_of(), loader(keep=0.9, score="el2n")
    prune_task(task, pruned)
    pruned.set_epoch(0, None)
    batches = iter(pruned)
    task(*next(batches))["loss"].backward()
    images, labels = next(batches)
    task(images, nn.functional.one_hot(labels, 3).float())["loss"].backward()
    # The rows of a loss by other means do not.
    images, labels = next(batches)
    with pytest.raises(ValueError, match="got a pruner with score='el2n'"):
        task(images.repeat(2, 1, 1, 1), labels.repeat(2))


def test_a_batch_is_scored_exactly_once():
    pruner = Pruner(N, 0.3)
    loader, task = PrunedLoader(loader_of(), pruner, accumulate=1), task_of()
    with pytest.raises(RuntimeError, match=r"loader.set_epoch\(epoch, lr_scheduler\) must be"):
        next(iter(loader))
    loader.set_epoch(0, None)
    with pytest.raises(RuntimeError, match=r"was not scored: call prune_task\(task, loader\)"):
        for images, labels in loader:
            task(images, labels)
    prune_task(task, loader)
    with pytest.raises(RuntimeError, match="there is no batch"):
        task(torch.zeros(BATCH, 3, 8, 8), torch.zeros(BATCH, dtype=torch.int64))
    batch = next(iter(loader))
    task(*batch)
    with pytest.raises(RuntimeError, match="it has been scored"):
        task(*batch)
    # An epoch that is left early leaves no ids behind for the next.
    other = iter(PrunedLoader(loader_of(), pruner, accumulate=1).pruner.batch_sampler(BATCH, True))
    for (images, labels), ids in zip(loader, other, strict=True):
        before = pruner.table.count.clone()
        task(images, labels)
        assert (pruner.table.count - before).nonzero().flatten().tolist() == sorted(ids)
        assert labels.tolist() == [i % 3 for i in ids]


def test_a_loss_of_ones_own_and_its_length():
    pruner = Pruner(N, 0.3)
    loader = PrunedLoader(loader_of(), pruner, accumulate=1)

    def losses(output, target):
        return (output - nn.functional.one_hot(target, 3)).square().sum(1)

    task = task_of(nn.MultiMarginLoss())
    with pytest.raises(TypeError, match="known here, got MultiMarginLoss"):
        prune_task(task, loader)
    prune_task(task, loader, losses)
    loader.set_epoch(0, None)
    batches = iter(loader)
    images, labels = next(batches)
    found = task(images, labels)
    assert torch.equal(found["loss"], losses(found["output"], labels).mean())
    images, labels = next(batches)
    with pytest.raises(ValueError, match=r"must be one per sample \[4\].*got \[3\]"):
        task(images[:3], labels[:3])


def test_an_epoch_without_a_batch_and_a_checkpoint_without_a_pruner_are_refused():
    pruner = Pruner(N, 3)
    loader = PrunedLoader(loader_of(), pruner, accumulate=1)
    loader.set_epoch(0, None)
    pruner.observe(torch.arange(N), torch.rand(N))
    with pytest.raises(ValueError, match=r"at most 3 here, the samples of epoch 1 .* got 4"):
        loader.set_epoch(1, None)
    task = task_of()
    state = task.get_checkpoint_state()
    prune_task(task, loader)
    with pytest.raises(ValueError, match="must hold a pruner, got one without"):
        task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    with pytest.raises(ValueError, match=r"num_updates must lie in epoch 1 of 0 updates"):
        loader.place(7)
