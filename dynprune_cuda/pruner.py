# SPDX-License-Identifier: Apache-2.0
"""The object that a training script touches: scores in, subsets and samplers out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynprune_cuda import distributed, functional
from dynprune_cuda._checks.arguments import (
    FLOATING,
    INTEGER,
    MAX_INT64,
    as_bool,
    as_int,
    check_tensor,
    check_vector,
)
from dynprune_cuda._checks.batches import check_ids, check_ids_and_values, move_without_waiting
from dynprune_cuda._epochs import make_run
from dynprune_cuda._epochs.config import Config, make_config
from dynprune_cuda._epochs.lengths import Lengths
from dynprune_cuda._epochs.run import Run
from dynprune_cuda._schedule.keep import Keep
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda.advice import BATCH_ALPHA, about_batch_values, about_greedy, advise
from dynprune_cuda.data.bucketing import WINDOW, BucketBatchSampler
from dynprune_cuda.data.indexed import IndexedDataset
from dynprune_cuda.data.samplers import EpochBatchSampler, EpochSampler
from dynprune_cuda.data.streams import FilteredStream, Streams
from dynprune_cuda.data.unselected import UnselectedBatchSampler
from dynprune_cuda.functional.cross_entropy import SCORES, TableOptions, step_loss
from dynprune_cuda.policies.adapter import AnyPolicy
from dynprune_cuda.policies.quotas import ClassShares
from dynprune_cuda.rescoring import IGNORE_INDEX, Rescored, ScoreBatch, rescore
from dynprune_cuda.scores.others import other_ids
from dynprune_cuda.scores.table import ScoreTable
from dynprune_cuda.stats import Stats, share

__all__ = ["Pruner"]


class Pruner:
    """Decides which samples each epoch trains on, and learns from the losses it is shown.

        pruner = Pruner(len(train_set), keep=0.3, device="cuda")
        loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(512))
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            for images, labels, ids in loader:
                loss = pruner.cross_entropy(model(images), labels, ids)
                ...

    Epochs `warmup_epochs`, `warmup_epochs + period`, ... select a new subset; until the next
    selection the subset stays, in an order that is drawn anew each epoch. The warm-up before and
    the annealing at the end train on everything. Before the first `set_epoch` the epoch is 0.

    The first `set_epoch` may name a later epoch than the warm-up while a policy that needs scores
    has none: the loop counts from 1, or a state was not loaded. A RuntimeWarning says so, and the
    warm-up runs then, for `warmup_epochs` epochs. Lengths count the epochs before as full.

    A jump, forwards or backwards, selects if the subset at hand belongs to another period: with
    the scores of now and the seed of the period that the epoch lies in.

    With several processes (see `process_group`), each trains its share of the same subset: the
    samplers, `DeviceLoader`, `steps_per_epoch` and `total_steps` are those of one process, and so
    is `batch_size`. All have as many steps: where the subset does not divide, some processes repeat
    their first sample, whose second visit counts in the gradient and not in the scores. `selected`,
    and after `set_epoch` the scores, are the same everywhere.

    A pruner is a plain object: it can be pickled and deep-copied. It never touches the random
    generators of Python, NumPy or torch. Subclasses work with every `sharding`.
    """

    def __init__(
        self,
        num_samples: int,
        keep: Keep | None = None,
        policy: str | AnyPolicy | Callable[..., Tensor] = "adaptive",
        *,
        period: int | None = None,
        warmup_epochs: int = 1,
        anneal_epochs: int | None = None,
        epochs: int | None = None,
        groups: Any = None,
        group_floor: float | None = None,
        class_shares: ClassShares | None = None,
        score: str = "loss",
        alpha: float | None = None,
        track_forgetting: bool = False,
        seed: int = 0,
        device: torch.device | str | int = "cpu",
        process_group: bool | None = None,
        sharding: str = "replicate",
        shard_layout: str = "contiguous",
        surplus: str = "move",
    ) -> None:
        """Makes a pruner that has seen nothing yet.

        Args:
            num_samples: Size of the training set.
            keep: How much of it a pruned epoch trains on: a float in (0, 1] is a fraction, of
                which `max(1, floor(keep * num_samples + 0.5))` samples result; an int is the
                number itself. A sequence has one such entry per epoch, of which the last one goes
                on; a function gets the epoch, and must always give the same answer for it. A
                selection asks for its own epoch: a change shows at the next one. A policy that
                decides the number itself (full data, a static subset) needs no `keep`; if one is
                given, it must agree. InfoBatch takes none.
            policy: A name from `policies.names()`, an object from `policies` or of your own, or a
                function; see `policies.Policy`.
            period: Epochs between selections, at least 1. None: 1; see docs/choosing.md.
                `policies.paper` has the period of the paper, 10.
            warmup_epochs: First epochs, which train on everything.
            anneal_epochs: Last epochs, which train on everything; needs `epochs`. None: 0, or what
                the policy's source does.
            epochs: Length of the run.
            groups: The class or group of each sample, any integers [num_samples]: every selection
                then keeps a floor or a fixed share of each. See `policies.Balanced`.
            group_floor: A share of the group's proportional part of the selection, a float in
                [0, 1], or a number of samples, an int. None: 0.5, or nothing with `class_shares`.
            class_shares: How much of the selection each group makes up: "equal", "proportional", or
                a dict {class: share} with numbers from 0, of which only the ratios count. A group
                that is too small is kept whole, and the others fill up. None: the floor.
            score: What `cross_entropy` enters as a sample's score: "loss" (the training loss with
                its class weight and label smoothing), "el2n", "entropy", or "margin" (its
                negative, so that small margins rank high).
            alpha: Weight of the newest value in a sample's moving average, in (0, 1]. None: 0.8,
                or what the policy's source does, and 0.1 for a whole batch's value in `observe`.
            track_forgetting: Count in `table.forget_count` how often a sample that was classified
                correctly at one visit was not at the next; see `ScoreTable`.
            seed: Any int, taken modulo 2**64; decides everything random.
            device: Where scores and subsets live: the device of the model.
            process_group: The processes that train together, each on its share of the same subset:
                a group of torch.distributed, None for the default one if torch.distributed is
                initialised, or False for this process only. All of them must make the pruner, with
                the same settings, and call `set_epoch`.
            sharding: "replicate": every process holds all scores. "shard": each holds those of its
                own part of the samples, 17 bytes a sample, and 16 a visit until the next epoch; the
                subset and the batches are the same. `table`, `selected` and `stats` then tell of
                this process's samples, and all processes call `state_dict` and `load_state_dict`.
                Groups, InfoBatch, policies with a `select` of their own, `track_forgetting` and a
                step that is captured in a CUDA graph are refused.
            shard_layout: With sharding="shard", which samples process r of R holds: "contiguous"
                is the r-th piece of `ceil(num_samples / R)`, "strided" the ids that are r modulo R.
            surplus: With sharding="shard", who trains on a process's selected samples. "move":
                whoever it takes for equal shares and the batches of one process; their ids move,
                and every process must be able to read every sample. "local": the process itself,
                which repeats its own first ids (without entering scores) until all have as many
                steps. How long an epoch is, is then known once it has begun. See docs/sharding.md.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range, does not fit another one, or is not the same in
                every process.
            RuntimeError: Another process could not make its table.
        """
        ranks = distributed.resolve(process_group)
        made: list[Run] = []

        def make() -> dict[str, int]:
            config = make_config(
                num_samples,
                keep,
                policy,
                period=period,
                warmup_epochs=warmup_epochs,
                anneal_epochs=anneal_epochs,
                epochs=epochs,
                groups=groups,
                group_floor=group_floor,
                class_shares=class_shares,
                score=score,
                alpha=alpha,
                track_forgetting=track_forgetting,
                seed=seed,
                device=device,
                sharding=sharding,
                shard_layout=shard_layout,
                surplus=surplus,
            )
            ranks.check_device(config.device)
            made.append(make_run(config, ranks))
            return {}

        with torch.inference_mode(False):  # tensors that it made could not be trained with
            ranks.agree("making the pruner", ranks.buffer_device(device), make)
            self._run = made[0]
            self.lengths = Lengths(self._run)  # of epochs; samplers ask it
            ranks.check_settings(self._config.common(), self.device)
            # Made here, because the first step may be a captured one.
            ticket = None
            if self.device.type == "cuda":
                ticket = torch.zeros(1, dtype=torch.int32, device=self.device)
        if counts := self.schedule.known_counts():
            kept = sum(counts) / len(counts) / self.num_samples
            if message := about_greedy(self.policy, kept, 0.5 / self.num_samples):
                warnings.warn(message, UserWarning, stacklevel=2)
        self._ticket = ticket
        self._streams = Streams()
        self._score = SCORES.index(self.score)
        # Of 0-d values; None: the table's. Visits on their way to other shards carry no alpha.
        self._batch_alpha = BATCH_ALPHA if alpha is None and self.sharding != "shard" else None
        self._warns_of_batch_values = True

    # ---- what it was made with, and where it is

    @property
    def _config(self) -> Config:
        return self._run.config

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return self._config.num_samples

    @property
    def policy(self) -> AnyPolicy:
        """The selection rule, see `policies`."""
        return self._config.given_policy

    @property
    def weighs(self) -> bool:
        """Whether the policy decides how many samples it keeps, and rescales their losses."""
        return self._config.policy.weighs

    @property
    def rescales(self) -> bool:
        """Whether losses are multiplied by factors of their samples; see `rescale`."""
        return self._config.policy.has_factors

    @property
    def schedule(self) -> Schedule:
        """When it selects: `keep`, `period`, `warmup_epochs`, `anneal_epochs`, `epochs`."""
        return self._run.schedule

    @property
    def score(self) -> str:
        """What `cross_entropy` enters as the score."""
        return self._config.score

    @property
    def sharding(self) -> str:
        """Whether every process holds all scores, "replicate", or its own part, "shard"."""
        return self._config.sharding

    @property
    def surplus(self) -> str:
        """Where sharded scores let a process train on samples that it does not hold."""
        return self._config.surplus

    @property
    def table(self) -> ScoreTable:
        """The scores; with sharding="shard", those of this process's samples."""
        return self._run.table

    @property
    def ranks(self) -> distributed.Ranks:
        """The processes that train together, and this one's place: `rank`, `size`."""
        return self._run.ranks

    @property
    def seed(self) -> int:
        """The seed, in [0, 2**64)."""
        return self._run.state.seed

    @property
    def device(self) -> torch.device:
        """Where scores and subsets live."""
        return self.table.device

    @property
    def epoch(self) -> int:
        """The current epoch; 0 before the first `set_epoch`."""
        return self._run.state.epoch or 0

    @property
    def times_selected(self) -> Tensor:
        """How many selections chose each sample, int32 [num_samples], on `device`."""
        return self._run.state.times_selected

    @property
    def num_selections(self) -> int:
        """How many selections there were."""
        return self._run.state.num_selections

    @property
    def turnover(self) -> Tensor:
        """Share of the last selection that the one before had not chosen, 0-d float64.

        It is on `device`, and NaN before the second selection.
        """
        return self._run.state.turnover

    # ---- epochs

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, and selects if a selection is due. May wait for the device.

        Nothing changes if `epoch` is already the current one, or if an error is raised.

        With several processes, all of them must call it: it shares the scores that each has seen
        (which an error of the selection does not undo), and ends with the same table and the same
        subset on all of them.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            TypeError: `epoch` is no int, or the policy returned no tensor.
            ValueError: `epoch` is negative, `keep` gives no valid number for it, or the policy
                returned something other than as many distinct sample ids. Or the processes are
                not in the same place of the same run.
            IndexError: An earlier step on a GPU met a target or an id out of range.
            RuntimeError: Another process failed, or the pruner was made before torch.distributed
                was initialised.
        """
        epoch = as_int("epoch", epoch, minimum=0, maximum=MAX_INT64)
        if epoch != self._run.state.epoch:
            with self._run.entering(epoch) as messages:
                for message in messages:
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
        self._run.scheduled()
        self._streams.update(self)

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch, ascending, int64 [num_selected], on `device`.

        With sharding="shard", those that this process holds. Before the first `set_epoch`, what
        epoch 0 would select with the scores of the first look; iterating then begins that epoch.

        Raises:
            RuntimeError: Epoch 0 begins with a selection of several processes, and none was made.
        """
        subset = self._run.current()
        return self._run.all_ids() if subset is None else subset.ids.clone()

    def is_selected(self, sample_ids: Tensor) -> Tensor:
        """Returns whether the current epoch trains on each of `sample_ids`, without waiting.

        Args:
            sample_ids: Any integer dtype and shape, on the CPU or on `device`.

        Returns:
            bool, of the same shape, on `device`.

        Raises:
            TypeError: `sample_ids` is no tensor.
            ValueError: `sample_ids` is of no integer dtype, or on another GPU.
            RuntimeError: With sharding="shard", where a process knows of its own samples only.
        """
        if self.sharding == "shard":
            raise RuntimeError(
                "is_selected needs sharding='replicate': a process knows of its own samples only, "
                "see selected"
            )
        check_tensor("sample_ids", sample_ids, INTEGER)
        sample_ids = move_without_waiting("sample_ids", sample_ids.to(torch.int64), self.device)
        subset = self._run.current()
        if subset is None:
            return (sample_ids >= 0) & (sample_ids < self.num_samples)
        places = torch.searchsorted(subset.ids, sample_ids).clamp_(max=len(subset.ids) - 1)
        return subset.ids[places] == sample_ids

    @property
    def unselected(self) -> Tensor:
        """The sample ids that the current epoch leaves out, ascending, int64, on `device`.

        Nothing waits. With sharding="shard", those that this process holds.

        Raises:
            RuntimeError: As `selected`.
        """
        subset, ids = self._run.current(), self._run.all_ids()
        if subset is None:
            return ids[:0]
        return ids[other_ids(torch.searchsorted(ids, subset.ids), len(ids))]

    def unselected_share(self) -> Tensor:
        """Returns this process's part of `unselected`, ascending, int64, without waiting.

        Processes with replicated scores divide it; with sharding="shard" each takes its own.
        """
        ids = self.unselected
        return ids if self.sharding == "shard" else ids[self.ranks.rank :: self.ranks.size]

    def epoch_order(self) -> Tensor:
        """Returns the ids of the current epoch in the order in which the samplers yield them.

        Begins epoch 0 if no epoch has begun.

        Returns:
            int64 [share_length()] on `device`: the epoch's samples in an order drawn for this
            epoch, the same at every call. With several processes, this one's share of it, see
            `Ranks.share`; the same for replicated and sharded scores, unless surplus="local". Not
            to be changed.
        """
        return self._run.order()

    def whole_order(self) -> Tensor:
        """Returns the ids of the current epoch of all processes, in the epoch's order.

        Process r of R trains on the ids r, r + R, ... of it; see `Ranks.share`.

        Returns:
            int64 [num_selected] on `device`. Not to be changed.

        Raises:
            RuntimeError: As `selected`. Or with sharding="shard" and several processes.
        """
        return self._run.whole_order()

    def share_length(self, drop_last: bool = False) -> int:
        """Returns how many ids of the current epoch this process gets, as every other one does.

        With surplus="local": what the process with the most samples of the epoch has, or, with
        `drop_last`, the one with the fewest, those without any left aside.

        Args:
            drop_last: Whether a rest that does not divide is left out, instead of filled up.

        Raises:
            TypeError: `drop_last` is no bool.
        """
        return self._run.share_length(None, as_bool("drop_last", drop_last))

    @property
    def num_selected(self) -> int:
        """How many samples the current epoch trains on, in all processes together."""
        return self._run.num_selected()

    def steps_per_epoch(
        self, batch_size: int, drop_last: bool = False, epoch: int | None = None
    ) -> int:
        """Returns how many batches an epoch has; known for every epoch from the beginning.

        With several processes: how many each of them has; all have as many.

        A policy that weighs, such as `InfoBatch`, tells the length of a pruned epoch no earlier
        than its selection, and so does a pruner with surplus="local".

        Args:
            batch_size: Samples per batch, at least 1; of one process.
            drop_last: Whether a smaller last batch is left out.
            epoch: Which epoch; None is the current one.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of the epoch is not known yet.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        drop_last = as_bool("drop_last", drop_last)
        epoch = self.epoch if epoch is None else as_int("epoch", epoch, minimum=0)
        return self.lengths.steps(epoch, batch_size, drop_last)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Returns how many batches the epochs 0 to `epochs - 1` have, for an LR schedule.

        It takes one evaluation per selection where `keep` is a function, and less for numbers.

        Args:
            epochs: Number of epochs, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of an epoch is not known yet.
        """
        epochs = as_int("epochs", epochs, minimum=0)
        batch_size = as_int("batch_size", batch_size, minimum=1)
        return self.lengths.total(epochs, batch_size, as_bool("drop_last", drop_last))

    def locate_step(self, step: int, batch_size: int, drop_last: bool = False) -> tuple[int, int]:
        """Returns the epoch that a step of the run lies in, and its place in that epoch.

            epoch, batches = pruner.locate_step(steps_done, batch_size)  # where to go on

        Epochs differ in length, so `divmod(step, len(loader))` gives neither. It costs as much as
        `total_steps`.

        Args:
            step: How many steps come before it, from the start of epoch 0, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.

        Returns:
            The epoch, and how many of its steps come before; `locate_step(total_steps(e))` is
            `(e, 0)`.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, the length of an epoch is not known yet, or an
                epoch before the step has no steps at all.
        """
        step = as_int("step", step, minimum=0)
        batch_size = as_int("batch_size", batch_size, minimum=1)
        return self.lengths.locate(step, batch_size, as_bool("drop_last", drop_last))

    def wrap(self, dataset: Any) -> IndexedDataset:
        """Returns `IndexedDataset(dataset)`, checked to have as many samples as the pruner.

        Args:
            dataset: A map-style dataset of `num_samples` samples.

        Raises:
            TypeError: `dataset` is not map-style.
            ValueError: `dataset` has another length.
        """
        return IndexedDataset(dataset, self.num_samples)

    def sampler(self, drop_last: bool = False) -> EpochSampler:
        """Returns a sampler for `DataLoader(sampler=...)` that follows the current epoch.

        Args:
            drop_last: Whether a rest that does not divide among the processes is left out. With
                False, some processes repeat an id, whose second visit changes no score.
        """
        return EpochSampler(self, drop_last)

    def batch_sampler(
        self,
        batch_size: int,
        drop_last: bool = False,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        max_tokens: int | None = None,
        window: int = WINDOW,
    ) -> EpochBatchSampler:
        """Returns a sampler for `DataLoader(batch_sampler=...)` that follows the current epoch.

        Args:
            batch_size: Samples per batch, at least 1; with `max_tokens`, at most so many.
            drop_last: Whether to leave out a smaller last batch, and what does not divide among
                the processes. With False, some of them repeat an id, whose second visit changes no
                score.
            lengths: The length of each sample, any integers [num_samples]: batches are of like
                lengths then. See `data.BucketBatchSampler`, as for the other two.
            max_tokens: Most tokens of a batch with its padding; needs `lengths`.
            window: With `lengths`, how many batches are made from a piece of the random order.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range, or does not fit another one.
        """
        if lengths is not None:
            return BucketBatchSampler(
                self, batch_size, drop_last, lengths=lengths, max_tokens=max_tokens, window=window
            )
        if max_tokens is not None:
            raise ValueError(f"max_tokens={max_tokens} needs lengths=, the length of each sample")
        return EpochBatchSampler(self, batch_size, drop_last)

    def filter(
        self,
        stream: Iterable[Any],
        key: Callable[[Any], int] | None = None,
        *,
        decode: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
    ) -> FilteredStream:
        """Returns an iterable data set of the samples of a stream that the current epoch trains on.

        What is not selected is dropped before it is decoded; see `data.FilteredStream`.

        Args:
            stream: Yields raw items; every worker of every process reads the whole of it.
            key: Returns the sample id of a raw item. None: its place in the stream.
            decode: Makes a sample of a raw item. None: the item is the sample.
            drop_last: Whether samples that do not divide among all workers of all processes are
                left out. With False, some workers repeat a sample, which then has the id -1.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: Several processes hold the scores in shards.
        """
        filtered = FilteredStream(self, stream, key, decode=decode, drop_last=drop_last)
        filtered.update(self, begun=self._run.state.epoch is not None)
        return self._streams.add(filtered)

    def unselected_sampler(self, batch_size: int) -> UnselectedBatchSampler:
        """Returns a sampler for `DataLoader(batch_sampler=...)` of what the epoch leaves out.

        It yields `unselected_share()` of the epoch that is current when it is iterated. `rescore`
        takes a loader that has it.

        Args:
            batch_size: Samples per batch, at least 1; the last batch may be smaller.
        """
        return UnselectedBatchSampler(self, batch_size)

    # ---- scores

    def rescale(self, ids: Tensor, losses: Tensor) -> Tensor:
        """Multiplies losses by the factors of a policy that rescales, without waiting.

        These are `InfoBatch`, `RePB` and `Weighted(rescale=True)`.

        `cross_entropy` does it itself. For a loss of your own, where the mean of the batch was
        taken: `pruner.observe(ids, losses)`, then `pruner.rescale(ids, losses).mean()`.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`.
            losses: One loss per sample [batch], on `device`; not changed.

        Returns:
            `losses` itself under policies that do not rescale, otherwise a new tensor of the same
            dtype, differentiable; in warm-up and annealing every factor is 1.

        Raises:
            TypeError: `ids` or `losses` is no tensor.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
        """
        check_ids_and_values(ids, losses)
        factors = self._run.factors(ids)
        return losses if factors is None else losses * factors.to(losses.dtype)

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        sample_weight: Tensor | None = None,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
        grad_scale: Tensor | None = None,
    ) -> Tensor:
        """Computes the cross-entropy and enters the samples' scores, without waiting.

        The loss is that of `torch.nn.functional.cross_entropy` with the same options. Ignored rows
        leave their samples' scores alone. The scores enter the table at this call, not at the
        backward pass: compute a validation loss with torch's own function. One backward pass per
        call; see `functional.scored_cross_entropy_step_`. Keep the call out of checkpointed
        regions, which would enter the scores twice, and let no two calls on one pruner overlap.

        Args:
            logits: Floating point [batch, num_classes] on `device`.
            target: Class indices, int64, int32 or uint8 [batch].
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`; -1 for a row that
                belongs to no sample, and only trains.
            weight: Class weights [num_classes].
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].
            reduction: "mean" (weighted by the targets' class weights), "sum" or "none".
            sample_weight: Factors of the rows' losses [batch], known before the forward pass; they
                change neither the scores nor what "mean" divides by.
            target_b: Second class indices [batch] of mixed samples; the scores are those of
                `target`, but for the score "loss".
            lam: Weight of the first target, with `target_b`: a float, or a 0-d or [batch] tensor.
            grad_scale: The factor that a loss scaler multiplies the loss with, as a 0-d tensor on
                `device`; it saves work in the backward pass. It must be the factor that comes: a
                float16 gradient is rounded with it, and may underflow or overflow under another.

        Returns:
            The loss: 0-d, or [batch] for "none"; float32, or float64 for float64 logits.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape, length or value.
            IndexError: A target or an id is out of range (CPU; on a GPU the row is skipped and the
                error is raised by the next call that may wait, such as `set_epoch`).
        """
        table = self.table
        device = table.mean.device
        check_ids(ids)
        if ids.dtype != torch.int64 or ids.device != device:
            ids = move_without_waiting("ids", ids.to(torch.int64), device)
        factors = self._run.factors(ids)
        if factors is not None and sample_weight is not None:
            check_vector("sample_weight", sample_weight, FLOATING, ids)
            sample_weight = sample_weight * factors
        elif factors is not None:
            sample_weight = factors
        target_rows = self._run.update_target(ids)
        published = table.first_visit == "published"
        loss: Tensor = step_loss(
            logits,
            target,
            target_rows.rows,
            target_rows.columns,
            TableOptions._make((self._ticket, table.alpha, published, self._score)),
            loss_only=True,
            sample_weight=sample_weight,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            target_b=target_b,
            lam=lam,
            grad_scale=grad_scale,
        )
        if message := self._run.commit(target_rows, ids):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return loss

    def observe(
        self,
        ids: Tensor,
        values: Tensor | functional.ScoredLoss,
        correct: Tensor | None = None,
    ) -> None:
        """Enters values for losses that `cross_entropy` does not cover, without waiting.

        A 0-d value is credited to every sample of its batch. Only the moving average over the
        batches that a sample was in tells the samples apart, and it tells little of large batches:
        at batch size 64 its rank correlation with the true loss was 0.28 with alpha 0.1, and 0.09
        with alpha 0.8. So such values enter with alpha 0.1, unless `Pruner` was given `alpha`. With
        sharding="shard" they enter with the pruner's alpha: give it `alpha=0.1`. The first 0-d
        value of more than one sample is a RuntimeWarning. Enter per-sample values where possible.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`. A row whose id
                is -1 belongs to no sample and is skipped.
            values: One value per sample, floating point [batch]; bigger means more worth training
                on. Or the result of `functional.scored_cross_entropy`, of which the configured
                `score` is taken: the scores of ignored rows are 0, so give those rows the id -1
                (`ids.masked_fill(target == ignore_index, -1)`). Or a 0-d value of the whole batch,
                such as a loss that has no per-sample value; see below.
            correct: Was the sample classified correctly, bool [batch]; counts for nothing without
                `track_forgetting`. None: what a `ScoredLoss` says, or, with other values, unknown:
                the visit then counts as no forgetting event.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
            IndexError: An id is out of range (CPU; on a GPU the row is skipped and the error is
                raised by the next call that may wait, such as `set_epoch`).
        """
        if isinstance(values, functional.ScoredLoss):
            if correct is None and self.table.track_forgetting:
                correct = values.correct
            values = self._score_of(values)
        is_shared = False  # by several samples
        if isinstance(values, Tensor) and values.dim() == 0:
            check_ids(ids)
            is_shared = len(ids) > 1
            values = values.detach().expand(len(ids))
        check_ids_and_values(ids, values)
        alpha = self._batch_alpha if is_shared else None
        messages = [self._run.observe(ids, values, correct, alpha)]
        if is_shared and self._warns_of_batch_values:
            self._warns_of_batch_values = False
            used = self.table.alpha if alpha is None else alpha
            messages.append(about_batch_values(used, self.sharding))
        for message in filter(None, messages):
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def rescore(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        score: ScoreBatch | None = None,
        *,
        weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
    ) -> Rescored:
        """Scores samples by forward passes only, such as those that the epoch left out. Waits.

            rest = DataLoader(indexed_set, batch_sampler=pruner.unselected_sampler(512))
            ...
            pruner.rescore(model, rest)  # at the end of an epoch

        The model runs with `model.eval()` and without gradients. The modes of all its modules, and
        the random generators of Python, NumPy and torch in this process, are afterwards as before.
        Autocast is yours: `with torch.autocast("cuda", torch.bfloat16): pruner.rescore(...)`.

        The values enter the table as a training step's do: they count as visits, in `visits_gini`
        and in forgetting events, too. They are of the model in evaluation mode, so they may be
        lower than the losses of training. Pass the `weight` and `label_smoothing` of the training.

        With several processes each enters what its own loader yields, and `set_epoch` shares it.
        With sharding="shard" the scores enter when the next epoch begins.

        Args:
            model: On `device`; of DistributedDataParallel, the module inside is used.
            loader: Yields (inputs, targets, ids), three tensors on any device: targets are class
                indices [batch], and ids are integers [batch], -1 for no sample.
            score: A function `(model, batch) -> (ids, values)` for other batches or other scores,
                with ids and values as `observe` takes them.
            weight: Class weights [num_classes], on `device`.
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].

        Returns:
            The seconds that it took, and how many batches and samples the loader had.

        Raises:
            TypeError: An argument or a batch has the wrong type.
            ValueError: An argument or a batch has the wrong dtype, shape or value. What was entered
                before stays.
            IndexError: As `observe`.
        """
        self._run.rescored()
        return rescore(
            self,
            model,
            loader,
            score,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )

    def stats(self) -> Stats:
        """Summarises the current epoch, the selections and the scores for a log.

        Waits for the device only when a number is read: see `Stats`, whose `log` writes to
        TensorBoard.

        Returns:
            `epoch`, `phase` ("warm-up", "pruned" or "annealing"), `num_selected`,
            `selected_fraction`, `num_selections`, `turnover` (share of the last selection that the
            one before had not chosen; NaN before the second), `never_selected`,
            `always_selected` and `sometimes_selected` (samples that none, all or some of the
            selections chose), and everything from `ScoreTable.stats`. With score="loss" and
            without `track_forgetting` also `share_below_ln2`: of the visited samples, the share
            whose mean loss is below ln 2, where the right class has more than half of the
            probability. For the cross-entropy of one class it is a lower bound of the training
            accuracy, as exact as the moving average; of other values it says nothing.
        """
        stats, table = self.table.stats().merged(*self._run.describe()), self.table
        if self.score == "loss" and not table.track_forgetting:
            below = share(table.mean < math.log(2), table.count > 0)
            stats = stats.merged({}, {"share_below_ln2": below})
        return stats

    def advice(self) -> str | None:
        """Returns a sentence if choosing samples so is unlikely to pay, or None. May wait.

        It compares `stats()` with what was measured: see docs/choosing.md. It looks at the training
        accuracy (`share_correct` or `share_below_ln2`), then at `keep` of greedy policies, then at
        `visits_gini`. Ask at the end of a run: a low accuracy early on says nothing. If `epochs` is
        known, a low accuracy counts from the middle of the run on. `share_below_ln2` tells of
        cross-entropies only: if you `observe` other values, set `track_forgetting`. With
        sharding="shard" it speaks of this process's samples.

        Returns:
            The same sentence for the same numbers. It names the number, its limit, what to do, and
            where the evidence is.

        Raises:
            IndexError: An earlier step on a GPU met a target or an id out of range.
        """
        plan = self.schedule
        kept = plan.keep if isinstance(plan.keep, int) else self.num_selected
        is_late = plan.epochs is None or 2 * (self.epoch + 1) > plan.epochs
        return advise(
            self.stats(),
            self.policy,
            keep=kept / self.num_samples,
            rounding=0.5 / self.num_samples,
            is_late=is_late,
        )

    # ---- another number of samples

    def resize(self, num_samples: int, *, groups: Any = None) -> None:
        """Goes on with more or fewer samples, between epochs. Collective; waits for the device.

            train_set.extend(new_samples)
            pruner.resize(len(train_set))
            pruner.set_epoch(epoch)  # selects, also inside a period

        Sample ids stay: new samples get the ids from the old `num_samples` on, and rank first until
        they are visited. Those from the new one on leave. A fraction in `keep` is one of the new
        size. `times_selected`, `num_selections` and `turnover` go on, over the samples that stay.

        Until the next `set_epoch` the pruner is as before its first: `epoch` is 0. Samplers and
        loaders follow; a `DeviceLoader` refuses until it has the new tensors. Iterators that are in
        use keep the old ids. The table is a new object: capture CUDA graphs of the step again.

        With sharding="shard", rows move to where the new shards are.

        Args:
            num_samples: Size of the training set, at least 1.
            groups: With groups, the labels of all samples, integers [num_samples].

        Raises:
            TypeError: `num_samples` is no int.
            ValueError: `num_samples` is below 1, or does not fit `keep` or the policy; or `groups`
                are missing, surplus or of another length; or the processes differ. Policies with
                `memory` or `uses_history` cannot be resized, nor can `RandomStatic`. Nothing
                changes, but that processes may have shared their scores.
            IndexError: An earlier step on a GPU met a target or an id out of range.
            RuntimeError: Another process failed.
        """
        with torch.inference_mode(False):
            self._run = self._run.resized(num_samples, groups)
        self.lengths.follow(self._run)
        self._streams.update(self, begun=False)

    # ---- saved states

    def state_dict(self) -> dict[str, Any]:
        """Returns all that decides how the run goes on: scores, subset, epoch, seed. May wait.

        A run that loads it goes on bit for bit; the position inside the epoch belongs to the
        sampler, see `EpochBatchSampler.state_dict`. The tensors are copies on `device`, and the
        rest are ints, floats and strings: `torch.load(weights_only=True)` and
        `torch.distributed.checkpoint` take it. Its version ends with a checksum of its contents,
        also of those that are spread over processes.

        With several processes, this one asks no other for anything. After `set_epoch` the states
        of all of them are equal, and one is enough. In mid-epoch each holds the scores that it has
        seen itself: to go on bit for bit, each saves and loads its own. From the state of one, all
        of them go on too, without what the others had seen since `set_epoch`.

        With sharding="shard" the call is collective: it routes what was observed first. With
        several processes, the columns are then DTensors, sharded along the samples, which
        `torch.distributed.checkpoint` saves, and loads into a pruner of any number of processes.
        They do not tell the layout of the shards. In mid-epoch, go on with as many processes as
        before, and the same `surplus` and `shard_layout`; at the end of an epoch, with any.

        Raises:
            IndexError: An earlier step on a GPU met a target or an id out of range.
        """
        return self._run.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], *, grow: bool = False) -> None:
        """Takes over what `state_dict` returned, from any device. Waits for the device.

        The pruner must have been made like the one that was saved; of its arguments, `epochs`,
        `anneal_epochs` and later values of `keep` may differ, and the saved seed replaces its own.

        With sharding="shard" the call is collective. It takes a state in pieces or whole, and the
        state of a pruner with sharding="replicate" at the end of an epoch. Pieces must be those
        that this process saved, or loaded with `torch.distributed.checkpoint`.

        Args:
            state_dict: From `state_dict`.
            grow: Whether the state may be of fewer samples, the first ones. The pruner is then as
                after `resize`: the next `set_epoch` begins an epoch.

        Raises:
            TypeError: The state is no mapping, or an entry has the wrong type.
            ValueError: The state is of another number of samples, version, policy or setting, or it
                is damaged; or the pieces are another process's, or the processes load states that
                differ. Nothing changes then.
            RuntimeError: Another process failed.
        """
        if as_bool("grow", grow):
            with torch.inference_mode(False):
                self._run = self._run.grown(state_dict)
            self.lengths.follow(self._run)
        else:
            self._run.load_state_dict(state_dict)
        self._streams.update(self, begun=self._run.state.epoch is not None)

    def __repr__(self) -> str:
        """Tells how the pruner was made, and where the run is."""
        plan = self.schedule
        return (
            f"Pruner(num_samples={self.num_samples}, keep={plan.keep}, "
            f"policy={self.policy!r}, period={plan.period}, warmup_epochs={plan.warmup_epochs}, "
            f"anneal_epochs={plan.anneal_epochs}, epochs={plan.epochs}, score={self.score!r}, "
            f"alpha={self.table.alpha}, "
            f"{'track_forgetting=True, ' if self.table.track_forgetting else ''}"
            f"seed={self.seed}, device='{self.device}'; "
            f"epoch {self.epoch}, {plan.phase(self.epoch)})"
        )

    def _score_of(self, scored: functional.ScoredLoss) -> Tensor:
        """Returns the configured score, detached: bigger means more worth training on."""
        if self.score == "margin":
            return -scored.margin
        values: Tensor = getattr(scored, self.score)
        return values.detach()
