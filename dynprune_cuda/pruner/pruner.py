# SPDX-License-Identifier: Apache-2.0
"""The object that a training script touches: scores in, subsets and samplers out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import distributed
from dynprune_cuda._checks.arguments import (
    MAX_INT64,
    as_bool,
    as_int,
)
from dynprune_cuda._epochs import make_run
from dynprune_cuda._epochs.config import make_config
from dynprune_cuda._epochs.lengths import Lengths
from dynprune_cuda._epochs.run import Run
from dynprune_cuda._schedule.keep import Keep
from dynprune_cuda.advice import about_greedy
from dynprune_cuda.data.bucketing import WINDOW, BucketBatchSampler
from dynprune_cuda.data.indexed import IndexedDataset
from dynprune_cuda.data.samplers import EpochBatchSampler, EpochSampler
from dynprune_cuda.data.streams import FilteredStream, Streams
from dynprune_cuda.data.unselected import UnselectedBatchSampler
from dynprune_cuda.functional.row_reductions import RowReductionName
from dynprune_cuda.policies.adapter import AnyPolicy
from dynprune_cuda.policies.quotas import ClassShares
from dynprune_cuda.pruner.binary_scoring import BinaryScoring

__all__ = ["Pruner"]


class Pruner(BinaryScoring):
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

    The first `set_epoch` may name an epoch after the warm-up, although the policy needs scores and
    has none. Then the loop counts from 1, or a state was not loaded. A RuntimeWarning says so, and
    the warm-up runs then, for `warmup_epochs` epochs. Lengths count the epochs before as full.

    A jump, forwards or backwards, selects if the current subset belongs to another period. It uses
    the current scores and the seed of the period that the epoch lies in.

    With several processes (see `process_group`), each trains its share of the same subset. The
    samplers, `DeviceLoader`, `steps_per_epoch`, `total_steps` and `batch_size` are those of one
    process. All have as many steps: where the subset does not divide, some processes repeat their
    first sample. The second visit counts in the gradient and not in the scores. `selected`, and
    after `set_epoch` the scores, are the same everywhere.

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
        row_reduction: RowReductionName = "mean",
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
            keep: How much of it a pruned epoch trains on. A float in (0, 1] is a fraction: it gives
                `max(1, floor(keep * num_samples + 0.5))` samples. An int is the number itself. A
                sequence has one entry per epoch; its last entry holds for all later epochs. A
                function gets the epoch, and must always return the same for it. A selection uses
                the value of its own epoch: a change shows at the next one. A policy that decides
                the number itself (full data, a static subset) needs no `keep`; if one is given, it
                must agree. InfoBatch takes none.
            policy: A name from `policies.names()`, an object from `policies` or of your own, or a
                function; see `policies.Policy`.
            period: Epochs between selections, at least 1. None: 1; see docs/guides/choosing.md.
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
                a dict {class: share}. Shares are numbers from 0, and only their ratios count. A
                group that is too small is kept whole, and the others fill up. None: the floor.
            score: What `cross_entropy` records as a sample's score: "loss", "el2n", "entropy" or
                "margin". "loss" is the training loss with its class weight and label smoothing.
                "margin" is the negative margin, so that small margins rank high.
            row_reduction: The score of a sample that has several rows in a batch, such as tokens or
                views. It is their "mean", "sum" or "max", or a float in (0, 1]. The float is a
                share: the mean of its greatest scores. One batch is one visit, whatever its rows.
            alpha: Weight of the newest value in a sample's moving average, in (0, 1]. None: 0.8,
                or what the policy's source does, and 0.1 for a whole batch's value in `observe`.
            track_forgetting: Count in `table.forget_count` how often a sample that was classified
                correctly at one visit was not at the next; see `ScoreTable`.
            seed: Any int, taken modulo 2**64; decides everything random.
            device: Where scores and subsets live: the device of the model.
            process_group: The processes that train together, each on its share of the same subset.
                It is a group of torch.distributed, or False for this process only. None is the
                default group if torch.distributed is initialised. All of them must make the pruner,
                with the same settings, and call `set_epoch`.
            sharding: "replicate": every process holds all scores. "shard": each holds those of its
                own part of the samples. That is 17 bytes a sample, and 16 a visit until the next
                epoch. The subset and the batches are the same. `table`, `selected` and `stats` then
                tell of this process's samples, and all processes call `state_dict` and
                `load_state_dict`. Groups, InfoBatch, policies with a `select` of their own,
                `track_forgetting` and a step that is captured in a CUDA graph are refused.
            shard_layout: With sharding="shard", which samples process r of R holds: "contiguous"
                is the r-th piece of `ceil(num_samples / R)`, "strided" the ids that are r modulo R.
            surplus: With sharding="shard", who trains on a process's selected samples. "move": ids
                move between processes, so that shares are equal and batches are those of one
                process. Every process must be able to read every sample. "local": the process
                itself. It repeats its own first ids until all have as many steps, without recording
                their scores. The length of an epoch is then known once it has begun. See
                docs/guides/sharding.md.

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
                row_reduction=row_reduction,
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
            self._prepare_scoring(alpha)
        self._streams = Streams()
        self._told_of_keep = False
        if isinstance(keep, int) and keep == 1 < self.num_samples:
            warnings.warn(
                f"keep=1 is a count: one of {self.num_samples} samples; keep=1.0 keeps them all",
                UserWarning,
                stacklevel=2,
            )
        planned = self.schedule.keep
        if isinstance(planned, int):
            self._warn_if_greedy(planned, stacklevel=3)

    def _warn_if_greedy(self, kept: int, *, stacklevel: int) -> None:
        """Warns, once, if an epoch keeps too few samples for the policy."""
        if self._told_of_keep:
            return
        message = about_greedy(self.policy, kept / self.num_samples, 0.5 / self.num_samples)
        if message is not None:
            self._told_of_keep = True
            warnings.warn(message, UserWarning, stacklevel=stacklevel)

    # ---- epochs

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, and selects if a selection is due. May wait for the device.

        Nothing changes if `epoch` is already the current one, or if an error is raised.

        With several processes, all of them must call it. It shares the scores that each has seen;
        an error of the selection does not undo that. Afterwards all have the same table and the
        same subset.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            TypeError: `epoch` is no int, or the policy returned no tensor.
            ValueError: `epoch` is negative, `keep` gives no valid number for it, or the policy
                returned something other than as many distinct sample ids. Or the processes are
                not in the same place of the same run.
            IndexError: An earlier step on a GPU had a target or an id out of range.
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
        self._warn_if_greedy(self.num_selected, stacklevel=3)

    # ---- what loaders take

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
            IndexError: An earlier step on a GPU had a target or an id out of range.
            RuntimeError: Another process failed.
        """
        with torch.inference_mode(False):
            self._run = self._run.resized(num_samples, groups)
        self.lengths.follow(self._run)
        self._streams.update(self, begun=False)

    # ---- saved states

    def state_dict(self) -> dict[str, Any]:
        """Returns all that decides how the run goes on: scores, subset, epoch, seed. May wait.

        A run that loads it continues with bit-identical results. The position inside the epoch
        belongs to the sampler, see `EpochBatchSampler.state_dict`. The tensors are copies on
        `device`, and the rest are ints, floats and strings: `torch.load(weights_only=True)` and
        `torch.distributed.checkpoint` take it. Its version ends with a checksum of its contents,
        also of those that are spread over processes.

        With several processes, this one asks no other for anything. After `set_epoch` the states
        of all of them are equal, and one is enough. In mid-epoch each holds the scores that it has
        seen itself: for bit-identical results, each saves and loads its own. From the state of one,
        all of them continue too, without what the others had seen since `set_epoch`.

        With sharding="shard" the call is collective: it routes what was observed first. With
        several processes, the columns are then DTensors, sharded along the samples, which
        `torch.distributed.checkpoint` saves, and loads into a pruner of any number of processes.
        They do not tell the layout of the shards. In mid-epoch, go on with as many processes as
        before, and the same `surplus` and `shard_layout`; at the end of an epoch, with any.

        Raises:
            IndexError: An earlier step on a GPU had a target or an id out of range.
        """
        return self._run.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], *, grow: bool = False) -> None:
        """Takes over what `state_dict` returned, from any device. Waits for the device.

        The pruner must have been made like the one that was saved. Of its arguments, `epochs`,
        `anneal_epochs` and later values of `keep` may differ. The saved seed replaces its own.

        With sharding="shard" the call is collective. It takes a state in pieces or whole, and the
        state of a pruner with sharding="replicate" at the end of an epoch. Pieces must be those
        that this process saved, or loaded with `torch.distributed.checkpoint`.

        Args:
            state_dict: From `state_dict`.
            grow: Whether the state may be of fewer samples, the first ones. The pruner is then as
                after `resize`: the next `set_epoch` begins an epoch.

        Raises:
            TypeError: The state is no mapping, or an entry has the wrong type.
            ValueError: The state is damaged, or of another number of samples, version, policy or
                setting. Or the pieces are another process's, or the processes load states that
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
