# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: I001
"""The structure of timm's train script that docs/guides/frameworks.md changes, for `test_timm.py`.

Written for these tests, after timm 1.0.28: the same objects are made in the same order, and the
script counts its updates as that one does. It has no command line and no log, and runs on the CPU.
"""

import types

import torch
from torch import nn

from timm import utils
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    resume_task_checkpoint,
)

TASKS = {
    "logit": LogitDistillationTask,
    "feature": FeatureDistillationTask,
    "token": TokenDistillationTask,
}


def make_criterion(args):
    """Returns the loss that the options ask for."""
    smoothing = 0.0 if args.mixup else args.smoothing
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        threshold, is_sum = args.bce_target_thresh, args.bce_sum
        return BinaryCrossEntropy(smoothing, target_threshold=threshold, sum_classes=is_sum)
    if args.mixup:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def make_task(args, model):
    """Returns the task, with or without a teacher."""
    criterion = make_criterion(args)
    if args.teacher is None:
        return ClassificationTask(model, criterion, verbose=False)
    return TASKS[args.kd_distill_type](model, args.teacher, criterion, verbose=False)


def make_loader(args, dataset_train):
    """Returns the loader, and a Mixup for batches that were not mixed by it."""
    mix = {"mixup_alpha": args.mixup, "mode": args.mixup_mode, "num_classes": 3}
    mix["label_smoothing"] = args.smoothing
    collate_fn = FastCollateMixup(**mix) if args.mixup and args.prefetcher else None
    mixup_fn = Mixup(**mix) if args.mixup and not args.prefetcher else None
    if args.aug_splits:
        dataset_train = AugMixDataset(dataset_train, num_splits=args.aug_splits)
    loader = create_loader(
        dataset_train,
        input_size=(3, 8, 8),
        batch_size=args.batch_size,
        is_training=True,
        no_aug=not args.aug_splits,
        num_aug_splits=args.aug_splits,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,  # timm 1.0.28 fails at 0 workers otherwise
        collate_fn=collate_fn,
        device=torch.device("cpu"),
        use_prefetcher=args.prefetcher,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
    )
    return loader, mixup_fn


def main(args, model, dataset_train):
    """Trains; returns what the function has made."""
    device = torch.device("cpu")
    loader_train, mixup_fn = make_loader(args, dataset_train)

    loader_eval = None
    task = make_task(args, model)
    model = task.get_trainable_module()
    eval_model = task.get_eval_model()

    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=args.lr, momentum=0.9, weight_decay=0.0
    )
    start_epoch = 0
    if args.resume:
        start_epoch = resume_task_checkpoint(task, args.resume, optimizer, log_info=False)
    if args.model_ema:
        task.setup_ema(decay=0.9, use_warmup=True)
    saver = utils.CheckpointSaver(
        model, optimizer, args=None, checkpoint_dir=args.output, task=task, max_history=99
    )

    updates_per_epoch = (len(loader_train) + args.grad_accum_steps - 1) // args.grad_accum_steps
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        cooldown_epochs=0,
        min_lr=0.0,
        warmup_lr=0.01,
        warmup_epochs=1,
        step_on_epochs=not args.sched_on_updates,
        updates_per_epoch=updates_per_epoch,
    )
    if start_epoch > 0:
        if args.sched_on_updates:
            lr_scheduler.step_update(start_epoch * updates_per_epoch)
        else:
            lr_scheduler.step(start_epoch)
    rates = []
    try:
        for epoch in range(start_epoch, num_epochs):
            args.started(epoch)

            train_metrics = train_one_epoch(
                epoch, loader_train, optimizer, args, task, lr_scheduler, mixup_fn, rates
            )
            saver.save_checkpoint(epoch, metric=train_metrics)
            lr_scheduler.step(epoch + 1, None)
    except KeyboardInterrupt:
        pass
    return types.SimpleNamespace(**locals())


def train_one_epoch(epoch, loader, optimizer, args, task, lr_scheduler, mixup_fn, rates):
    """Trains one epoch; returns the mean loss."""
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False

    task.get_trainable_module().train()
    losses_m = utils.AverageMeter()
    accum_steps = args.grad_accum_steps
    last_accum_steps = len(loader) % accum_steps
    updates_per_epoch = (len(loader) + accum_steps - 1) // accum_steps
    num_updates = epoch * updates_per_epoch
    last_batch_idx = len(loader) - 1
    last_batch_idx_to_accum = len(loader) - last_accum_steps

    optimizer.zero_grad()
    for batch_idx, (input, target) in enumerate(loader):
        need_update = batch_idx == last_batch_idx or (batch_idx + 1) % accum_steps == 0
        if batch_idx >= last_batch_idx_to_accum:
            accum_steps = last_accum_steps
        if not args.prefetcher and mixup_fn is not None:
            input, target = mixup_fn(input, target)
        loss = task(input, target)["loss"] / accum_steps
        loss.backward()
        losses_m.update(loss.item() * accum_steps, input.shape[0])
        if not need_update:
            continue
        optimizer.step()
        optimizer.zero_grad()
        num_updates += 1
        task.update_ema(step=num_updates)
        lr_scheduler.step_update(num_updates=num_updates, metric=losses_m.avg)
        rates.append((epoch, optimizer.param_groups[0]["lr"]))
    return losses_m.avg
