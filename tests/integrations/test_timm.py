# SPDX-License-Identifier: Apache-2.0
"""The train script of timm with the patch of docs/guides/frameworks.md, on the installed timm."""

import copy
import math
import re
import types
from pathlib import Path

import diffs
import pytest
import torch
from paths import ROOT
from torch.utils.data import DataLoader

pytest.importorskip("timm.task")
import timm_script
from timm_parts import BATCH, EPOCHS, Images, N, Tiny, options, seed_all

from dynprune_cuda import Pruner

FULL, PRUNED = 10, 3  # batches of an epoch: the last ones are incomplete
PAGE = (ROOT / "docs" / "guides" / "frameworks.md").read_text()
(PATCH,) = re.findall(r"```diff\n(.*?)```", PAGE, re.S)
PATCHED = diffs.apply(PATCH, (ROOT / "tests" / "support" / "timm_script.py").read_text())


def run(args, pruner="keep=0.3", text=PATCHED):
    """Runs the patched script, whose pruner gets other options."""
    script = types.ModuleType("timm_script_patched")
    Path(args.output).mkdir(exist_ok=True)
    assert text.count("keep=0.3") == 1
    exec(compile(text.replace("keep=0.3", pruner), "train.py", "exec"), script.__dict__)
    model = Tiny()
    seed_all()
    return script.main(args, model, Images())


def reference(args, pruner, rates):
    """The same training as a plain loop, with one loss per sample by timm's own criterion."""
    model = Tiny()
    seed_all()
    loader, mixup_fn = timm_script.make_loader(args, Images())
    task = timm_script.make_task(args, model)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=1, momentum=0.9)
    plain = loader.loader if args.prefetcher else loader
    batches = DataLoader(
        plain.dataset,
        batch_sampler=pruner.batch_sampler(BATCH, drop_last=True),
        collate_fn=plain.collate_fn,
    )
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = rates[epoch]
        pruner.set_epoch(epoch)
        ids_of = iter(pruner.batch_sampler(BATCH, drop_last=True))
        is_off = args.mixup_off_epoch and epoch >= args.mixup_off_epoch
        for mixer in (plain.collate_fn, mixup_fn):
            if hasattr(mixer, "mixup_enabled"):
                mixer.mixup_enabled = not is_off
        waiting = []
        for number, (x, y) in enumerate(batches):
            if args.prefetcher:
                x = (x.float() - loader.mean) / loader.std
            if mixup_fn:
                x, y = mixup_fn(x, y)
            ids = torch.tensor(next(ids_of))
            found = task(x, y)
            rows = [task.criterion(found["output"][i::BATCH], y[i::BATCH]) for i in range(BATCH)]
            losses = torch.stack(rows)
            pruner.observe(ids, losses.detach())
            waiting.append(pruner.rescale(ids, losses).mean() if pruner.rescales else found["loss"])
            if len(waiting) == args.grad_accum_steps or number + 1 == len(batches):
                (sum(waiting) / len(waiting)).backward()
                optimizer.step()
                optimizer.zero_grad()
                waiting = []
    return task.get_trainable_module()


CASES = {
    "plain": {"smoothing": 0.0},
    "smoothing": {},
    "no prefetcher": {"prefetcher": False},
    "accumulation": {"grad_accum_steps": 2},
    "bce": {"bce_loss": True},
    "bce sum": {"bce_loss": True, "bce_sum": True, "bce_target_thresh": 0.5},
    "jsd": {"jsd_loss": True, "aug_splits": 3},
    "splits": {"aug_splits": 2},
    "mixup": {"mixup": 0.5},
    "mixup elem": {"mixup": 0.5, "mixup_mode": "elem", "mixup_off_epoch": 2},
    "mixup behind": {"mixup": 0.5, "prefetcher": False, "mixup_off_epoch": 2},
    "mixup bce": {"mixup": 0.5, "mixup_mode": "pair", "bce_loss": True},
    "logit": {"teacher": Tiny(1)},
    "logit mixup": {"teacher": Tiny(1), "mixup": 0.5},
    # Of another width, so that the task has a layer of its own.
    "feature": {"teacher": Tiny(1, 7), "kd_distill_type": "feature"},
    "token": {"teacher": Tiny(1), "kd_distill_type": "token", "bce_loss": True},
}


def assert_same(found, model, pruner):
    assert torch.equal(found.pruner.times_selected, pruner.times_selected)
    assert torch.equal(found.pruner.table.count, pruner.table.count)
    torch.testing.assert_close(found.pruner.table.mean, pruner.table.mean, rtol=1e-4, atol=1e-5)
    own, other = found.model.state_dict(), model.state_dict()
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    begun = Tiny().state_dict()
    assert any(
        not torch.equal(own[name], begun[name.removeprefix("student.")])
        for name in own
        if name.removeprefix("student.") in begun
    )


FAST = {"smoothing", "bce", "jsd", "mixup", "logit"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_patched_script_trains_by_the_loss_asked_for(tmp_path, name):
    args = options(tmp_path, **CASES[name])
    found = run(args)
    steps = -(-FULL // args.grad_accum_steps), -(-PRUNED // args.grad_accum_steps)
    epochs = [epoch for epoch, _ in found.rates]
    assert [epochs.count(epoch) for epoch in range(EPOCHS)] == [steps[0], *[steps[1]] * 3]
    # 41 samples do not divide into batches, nor do 12: what is left over is not trained on.
    assert found.pruner.table.count.sum() == BATCH * (FULL + PRUNED * (EPOCHS - 1))
    pruner = Pruner(N, keep=0.3)
    assert_same(found, reference(args, pruner, dict(found.rates)), pruner)
    assert "train_metrics" in vars(found) and math.isfinite(found.train_metrics)


@pytest.mark.slow
def test_workers_hand_the_ids_over_in_order(tmp_path):
    args = options(tmp_path, workers=2)
    found = run(args)
    pruner = Pruner(N, keep=0.3)
    assert_same(found, reference(args, pruner, dict(found.rates)), pruner)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoothing", "bce", "mixup"])
def test_losses_are_rescaled_by_a_policy_that_does(tmp_path, name):
    args = options(tmp_path, **CASES[name])
    found = run(args, "policy='infobatch'")
    pruner = Pruner(N, policy="infobatch")
    assert_same(found, reference(args, pruner, dict(found.rates)), pruner)
    assert len({epoch for epoch, _ in found.rates}) == EPOCHS


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pruner", ["keep=0.3", "keep=[0.2, 0.9, 0.5], period=1", "policy='infobatch'"]
)
def test_a_schedule_by_updates_is_at_its_place_after_every_epoch(tmp_path, pruner, accumulate):
    args = options(tmp_path, sched_on_updates=True, grad_accum_steps=accumulate)
    rates = run(args, pruner).rates
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / EPOCHS)) for epoch in range(EPOCHS + 1)]
    assert list(dict(rates).values()) == pytest.approx(cosine[1:], abs=1e-9)
    assert rates[-1][1] == pytest.approx(0, abs=1e-12)
    behind_warmup = [rate for epoch, rate in rates if epoch]
    assert behind_warmup == sorted(behind_warmup, reverse=True)


def test_without_the_integration_the_schedule_does_not_end(tmp_path):
    """What the test above would see otherwise."""
    line = "loader_train.set_epoch(epoch, lr_scheduler)"
    text = PATCHED.replace(line, line.replace("lr_scheduler", "None"))
    rates = run(options(tmp_path, sched_on_updates=True), text=text).rates
    assert rates[-1][1] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("how", ["smoothing", "feature", "jsd"])
def test_a_run_resumed_from_timms_checkpoint_goes_on(tmp_path, how):
    case = {**CASES[how], "model_ema": True, "sched_on_updates": True}
    whole = run(options(tmp_path / "whole", **copy.deepcopy(case)), "keep=0.3, period=1")
    assert whole.loader_train.updates == len(whole.rates) == FULL + 3 * PRUNED

    def stop(epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    args = options(tmp_path / "first", **copy.deepcopy(case))
    args.started = stop
    run(args, "keep=0.3, period=1")
    args = options(tmp_path / "second", **copy.deepcopy(case))
    args.resume = str(tmp_path / "first" / "checkpoint-1.pth.tar")
    found = run(args, "keep=0.3, period=1")
    assert found.rates == whole.rates[FULL + PRUNED :]
    assert found.loader_train.updates == whole.loader_train.updates
    assert torch.equal(found.pruner.times_selected, whole.pruner.times_selected)
    assert torch.equal(found.pruner.table.count, whole.pruner.table.count)
    if how != "jsd":  # whose augmentations timm does not restore
        torch.testing.assert_close(found.pruner.table.mean, whole.pruner.table.mean)
        torch.testing.assert_close(found.model.state_dict(), whole.model.state_dict())


def test_an_averaged_model_counts_every_update(tmp_path):
    """By timm's own number, the averaging would begin anew in the first shorter epoch."""
    steps = []
    args = options(tmp_path, model_ema=True)
    make = timm_script.make_task

    def recording(*given):
        task = make(*given)
        average = task.update_ema
        task.update_ema = lambda step=None: (steps.append(step), average(step=step))
        return task

    text = PATCHED.replace("task = make_task(args, model)", "task = RECORDING(args, model)")
    script = types.ModuleType("patched")
    script.RECORDING = recording
    exec(compile(text, "train.py", "exec"), script.__dict__)
    script.main(args, Tiny(), Images())
    assert steps == list(range(1, FULL + 3 * PRUNED + 1))
