# SPDX-License-Identifier: Apache-2.0
"""The object that a training script touches: scores in, subsets and samplers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import distributed, functional, policies
from dynprune_cuda._checks.arguments import FLOATING, as_choice, as_int, check_vector
from dynprune_cuda._checks.batches import check_ids, check_ids_and_values, move_without_waiting
from dynprune_cuda._epochs.config import SURPLUS, make_table
from dynprune_cuda._epochs.resume import ResumableEpochs
from dynprune_cuda._epochs.sharded import ShardedEpochs
from dynprune_cuda._schedule.keep import Keep
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda.distributed.shard import LAYOUTS
from dynprune_cuda.functional.cross_entropy import SCORES, step_loss
from dynprune_cuda.policies.registry import AnyPolicy, resolve_count
from dynprune_cuda.stats import Stats

__all__ = ["Pruner"]


class Pruner(ResumableEpochs):
    """Decides which samples each epoch trains on, and learns from the losses it is shown.

        pruner = Pruner(len(train_set), keep=0.3, policy="ucb", device="cuda")
        loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(512))
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            for images, labels, ids in loader:
                loss = pruner.cross_entropy(model(images), labels, ids)
                ...

    Epochs `warmup_epochs`, `warmup_epochs + period`, ... select a new subset; until the next
    selection the subset stays, in an order that is drawn anew each epoch. The warm-up before and
    the annealing at the end train on everything. Before the first `set_epoch` the epoch is 0.

    A jump, forwards or backwards, selects if the subset at hand belongs to another period: with
    the scores of now and the seed of the period that the epoch lies in.

    With several processes (see `process_group`), each trains its share of the same subset: the
    samplers, `DeviceLoader`, `steps_per_epoch` and `total_steps` are those of one process, and so
    is `batch_size`. All have as many steps: where the subset does not divide, some processes repeat
    their first sample, whose second visit counts in the gradient and not in the scores. `selected`,
    and after `set_epoch` the scores, are the same everywhere.

    A pruner is a plain object: it can be pickled and deep-copied. It never touches the random
    generators of Python, NumPy or torch.

    Attributes:
        num_samples: Size of the training set.
        table: The scores, a `ScoreTable`.
        policy: The selection rule, see `policies`.
        schedule: When it selects: `keep`, `period`, `warmup_epochs`, `anneal_epochs`, `epochs`.
        score: What `cross_entropy` enters as the score.
        seed: The seed, in [0, 2**64).
        surplus: Where sharded scores let a process train on samples that it does not hold.
    """

    def __new__(cls, *_arguments: Any, sharding: str = "replicate", **_options: Any) -> Pruner:
        """Makes a pruner of the kind that `sharding` asks for."""
        return super().__new__(_ShardedPruner if cls is Pruner and sharding == "shard" else cls)

    def __init__(
        self,
        num_samples: int,
        keep: Keep | None = None,
        policy: str | AnyPolicy | Callable[..., Tensor] = "ucb",
        *,
        period: int | None = None,
        warmup_epochs: int = 1,
        anneal_epochs: int | None = None,
        epochs: int | None = None,
        groups: Any = None,
        group_floor: float = 0.5,
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
            period: Epochs between selections, at least 1. None: 10, or what the policy's source
                does.
            warmup_epochs: First epochs, which train on everything.
            anneal_epochs: Last epochs, which train on everything; needs `epochs`. None: 0, or what
                the policy's source does.
            epochs: Length of the run.
            groups: The class or group of each sample, any integers [num_samples]: every selection
                then keeps a floor of each. See `policies.Balanced`.
            group_floor: A share of the group's proportional part of the selection, a float in
                [0, 1], or a number of samples, an int.
            score: What `cross_entropy` enters as a sample's score: "loss" (the training loss with
                its class weight and label smoothing), "el2n", "entropy", or "margin" (its
                negative, so that small margins rank high).
            alpha: Weight of the newest value in a sample's moving average, in (0, 1]. None: 0.8,
                or what the policy's source does.
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
                this process's samples, `state_dict` and `load_state_dict` are called by all
                processes; groups, InfoBatch, policies of your own and `track_forgetting` are
                refused, and so is a step that is captured in a CUDA graph.
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
        num_samples = as_int("num_samples", num_samples, minimum=1)
        if epochs is not None:
            epochs = as_int("epochs", epochs, minimum=1)
        policy = policies.resolve(policy)
        if groups is not None:
            policy = policies.Balanced(policy, groups, group_floor)
            policy.check_size(num_samples)
        own = policy.settings(epochs) if hasattr(policy, "settings") else {}
        defaults = {"period": 10, "anneal_epochs": 0, "alpha": 0.8, **own}
        schedule = Schedule(
            num_samples,
            resolve_count(policy, keep, num_samples),
            period=defaults["period"] if period is None else period,
            warmup_epochs=warmup_epochs,
            anneal_epochs=defaults["anneal_epochs"] if anneal_epochs is None else anneal_epochs,
            epochs=epochs,
        )
        if isinstance(policy, policies.Balanced) and not policy.weighs:
            for kept in schedule.known_counts():
                policy.floors(kept)
        self.score = as_choice("score", score, SCORES)
        inside = policy.policy if isinstance(policy, policies.Balanced) else policy
        if self.score == "margin" and isinstance(inside, policies.Weighted):
            raise ValueError(
                "score='margin' does not fit policy='weighted', which needs scores >= 0: the "
                "margins of correct samples count as negative, and would all weigh nothing"
            )
        seed = as_int("seed", seed) % 2**64
        ranks = distributed.resolve(process_group)
        self.surplus = as_choice("surplus", surplus, SURPLUS)
        table = make_table(
            self,
            as_choice("sharding", sharding, ("replicate", "shard")),
            num_samples,
            ranks,
            policy,
            layout=as_choice("shard_layout", shard_layout, LAYOUTS),
            surplus=surplus,
            device=device,
            alpha=defaults["alpha"] if alpha is None else alpha,
            first_visit=getattr(policy, "first_visit", "zero"),
            track_forgetting=track_forgetting,
        )
        super().__init__(table, policy, schedule, seed, ranks)
        plan = {name: getattr(schedule, name) for name in ("keep", "anneal_epochs", "epochs")}
        plan |= {"track_forgetting": track_forgetting, "sharding": sharding}
        plan |= {"shard_layout": shard_layout, "surplus": surplus}
        ranks.check_settings({**self._settings(), **plan}, self.device)
        # Of scored_cross_entropy_step_. Made here: the first step may be a captured one.
        self._ticket: Tensor | None = None
        if self.device.type == "cuda":
            self._ticket = torch.zeros(1, dtype=torch.int32, device=self.device)

    def rescale(self, ids: Tensor, losses: Tensor) -> Tensor:
        """Multiplies losses by the factors of a policy that weighs (`InfoBatch`), without waiting.

        `cross_entropy` does it itself. For a loss of your own, where the mean of the batch was
        taken: `pruner.observe(ids, losses)`, then `pruner.rescale(ids, losses).mean()`.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`.
            losses: One loss per sample [batch], on `device`; not changed.

        Returns:
            `losses` itself under policies that do not weigh, otherwise a new tensor of the same
            dtype, differentiable; in warm-up and annealing every factor is 1.

        Raises:
            TypeError: `ids` or `losses` is no tensor.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
        """
        check_ids_and_values(ids, losses)
        factors = self._factors(ids)
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
        factors = self._factors(ids)
        if factors is not None and sample_weight is not None:
            check_vector("sample_weight", sample_weight, FLOATING, ids)
            sample_weight = sample_weight * factors
        elif factors is not None:
            sample_weight = factors
        rows, columns = table.visits(self._without_repeat(ids))
        published, score = table.first_visit == "published", SCORES.index(self.score)
        loss: Tensor = step_loss(
            logits,
            target,
            rows,
            columns,
            (self._ticket, table.alpha, published, score),
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
        self._note_entered(ids)
        return loss

    def observe(
        self,
        ids: Tensor,
        values: Tensor | functional.ScoredLoss,
        correct: Tensor | None = None,
    ) -> None:
        """Enters values for losses that `cross_entropy` does not cover, without waiting.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`. A row whose id
                is -1 belongs to no sample and is skipped.
            values: One value per sample, floating point [batch]; bigger means more worth training
                on. Or the result of `functional.scored_cross_entropy`, of which the configured
                `score` is taken: the scores of ignored rows are 0, so give those rows the id -1
                (`ids.masked_fill(target == ignore_index, -1)`). Or a 0-d value of the whole batch,
                such as a loss that has no per-sample value: it is credited to every sample of the
                batch, and the moving average over the batches that a sample was in tells the
                samples apart.
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
        if isinstance(values, Tensor) and values.dim() == 0:
            check_ids(ids)
            values = values.detach().expand(len(ids))
        check_ids_and_values(ids, values)
        self.table.update(self._without_repeat(ids), values, correct)
        self._note_entered(ids)

    def stats(self) -> Stats:
        """Summarises the current epoch, the selections and the scores for a log.

        Waits for the device only when a number is read: see `Stats`, whose `log` writes to
        TensorBoard.

        Returns:
            `epoch`, `phase` ("warm-up", "pruned" or "annealing"), `num_selected`,
            `selected_fraction`, `num_selections`, `turnover` (share of the last selection that the
            one before had not chosen; NaN before the second), `never_selected`,
            `always_selected` and `sometimes_selected` (samples that none, all or some of the
            selections chose), and everything from `ScoreTable.stats`.
        """
        never = (self.times_selected == 0).sum()
        always = ((self.times_selected == self.num_selections) & (self.times_selected > 0)).sum()
        known = {
            "epoch": self.epoch,
            "phase": self.schedule.phase(self.epoch),
            "num_selected": self.num_selected,
            "selected_fraction": self.num_selected / self.num_samples,
            "num_selections": self.num_selections,
        }
        tensors = {
            "turnover": self.turnover,
            "never_selected": never,
            "sometimes_selected": len(self.times_selected) - never - always,
            "always_selected": always,
        }
        return self.table.stats().merged(known, tensors)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "score": self.score}

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

    def _factors(self, ids: Tensor) -> Tensor | None:
        """Returns what a policy that weighs multiplies the losses of `ids` by, float32 [batch]."""
        if self._weights is None:
            return None
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        # An id out of range is reported by the update of its score; -1 belongs to no sample.
        factors = self._weights[ids.clamp(0, self.num_samples - 1)]
        return factors.masked_fill(ids < 0, 1.0)

    def _score_of(self, scored: functional.ScoredLoss) -> Tensor:
        """Returns the configured score, detached: bigger means more worth training on."""
        if self.score == "margin":
            return -scored.margin
        values: Tensor = getattr(scored, self.score)
        return values.detach()


class _ShardedPruner(ShardedEpochs, Pruner):
    """What `Pruner(sharding="shard")` makes."""
