# SPDX-License-Identifier: Apache-2.0
"""Selection inside a batch: which rows of a large batch a step trains on.

A forward pass without gradients scores the large batch; the training step sees the chosen rows only
(selective backpropagation, online batch selection). The choice depends on the scores and on one
number, the seed, which lives on the device and advances there. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dynprune_cuda import distributed, functional
from dynprune_cuda._checks.arguments import (
    FLOATING,
    MAX_INT64,
    as_bool,
    as_choice,
    as_device,
    as_float,
    as_int,
    check_type,
    check_vector,
)
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._schedule.keep import resolve_keep
from dynprune_cuda._schedule.seeds import as_int64, derive_seed
from dynprune_cuda.distributed.dealing import check_dealt, deal_rows
from dynprune_cuda.functional.batch_weights import epsilon_weights, percentile_weights
from dynprune_cuda.functional.cross_entropy import ignored_rows
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.functional.soft_targets import is_soft

__all__ = ["BatchChoice", "BatchSelector"]

ScoreOfRow = Literal["loss", "el2n", "entropy", "margin", "excess"]
BatchPolicy = Literal["top_k", "weighted", "percentile", "epsilon_greedy", "uniform"]

BY = ("loss", "el2n", "entropy", "margin", "excess")
POLICIES = ("top_k", "weighted", "percentile", "epsilon_greedy", "uniform")
STATE_VERSION = 1


class BatchChoice(NamedTuple):
    """The chosen rows of a batch.

    Attributes:
        rows: Their positions in the batch, ascending, int64 [k]. With `over_ranks`, those of all R
            processes in their concatenated batches, [R * k]; `BatchSelector.take` deals them out.
        weights: What the losses of this process's k rows are multiplied by, float32 [k]; None
            without `rescale`.
    """

    rows: Tensor
    weights: Tensor | None


class BatchSelector:
    """Chooses the rows of a large batch that a step trains on.

        selector = BatchSelector(0.25, by="loss", policy="percentile", device="cuda")
        for x, y in loader:  # batches four times as large
            with torch.no_grad():
                rows, _ = selector(model(x), y)
            loss = F.cross_entropy(model(x[rows]), y[rows])
            ...

    With `rescale=True` the second result is a factor of each loss:
    `(weights * F.cross_entropy(model(x[rows]), y[rows], reduction="none")).mean()` estimates the
    mean loss of the large batch.

    The forward pass on the large batch is the caller's. In training mode it updates the running
    statistics of batch normalisation and draws dropout masks, like any forward pass.

    Batches of equal length have equally many rows chosen, and the call never waits for the device.
    So it can be captured in a CUDA graph. Each call advances the seed on the device, and so does
    each replay. The same seed, call and scores give the same rows on every device.

    With R processes, each chooses k rows of its own batch with random numbers of its own. With
    `over_ranks=True` they choose together: the choice is that of one process with the concatenated
    batches and R times as many rows. Some batches then hold more chosen rows than others, and rows
    move, so that each process trains on k of them:

        with torch.no_grad():
            choice = selector(model(x), y)
        x, y = selector.take(choice, x, y)

    Composer's selective backpropagation is `policy="percentile"` in the steps that
    `schedules.SelectionWindow` names.

    Attributes:
        keep: The float or int that was given.
        by: What a row's score is.
        policy: How rows are chosen by their scores.
        rescale: Whether calls return weights.
        over_ranks: Whether all processes choose together.
    """

    @torch.inference_mode(False)  # tensors that it made could not be updated outside
    def __init__(
        self,
        keep: float,
        by: ScoreOfRow = "loss",
        policy: BatchPolicy = "top_k",
        *,
        rescale: bool = False,
        over_ranks: bool = False,
        epsilon: float = 0.1,
        power: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        seed: int = 0,
        device: torch.device | str | int = "cpu",
        process_group: ProcessGroup | bool | None = None,
    ) -> None:
        """Makes a selector that was not called yet.

        Args:
            keep: How many rows of a batch of B are chosen. A float in (0, 1] is a fraction:
                `max(1, floor(keep * B + 0.5))`. An int is the number itself.
            by: What ranks a row: "loss", "el2n", "entropy", "margin" (its negative, so that small
                margins rank high), or "excess". The last one is the loss less a reference loss of
                the row (Mindermann et al. 2022, arXiv:2206.07137).
            policy: "top_k": the greatest scores. "weighted": drawn in proportion to the score's
                `power`; scores that are not positive weigh nothing. "percentile": drawn in
                proportion to u ** (B/k - 1), as in selective backpropagation (Jiang et al. 2019,
                arXiv:1910.00762). Here u = (rank + 0.5) / B is the share of rows with a smaller
                score. "epsilon_greedy": the greatest scores, and a random share. "uniform": at
                random. All draw without replacement.
            rescale: Return weights that keep the mean unbiased. "uniform" and "epsilon_greedy" are
                exact. "weighted" and "percentile" take `functional.inclusion_probabilities`, whose
                error falls with the size of the batch. Their weights are at most 10: rows that are
                taken more rarely than a tenth of the others' share count for less than their part.
            over_ranks: Choose from the batches of all processes together, k rows times their
                number. All need batches of one length. Making the selector and its first call are
                collective and wait; a later call gathers 4 bytes a row and does not wait.
            epsilon: Random share of the k rows under "epsilon_greedy", in [0, 1].
            power: 0.5 or 1, of "weighted".
            label_smoothing: Label smoothing of the losses that rank, in [0, 1].
            ignore_index: Target of rows that rank last under every policy but "uniform".
            seed: Any int, taken modulo 2**64.
            device: Where the logits are.
            process_group: The processes that train together, as of `Pruner`. Without `over_ranks`
                it decides this process's random numbers only: nothing is exchanged.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range, does not fit another one, or differs between
                processes that choose together.
        """
        self.keep = keep
        if not hasattr(keep, "__index__"):
            resolve_keep(keep, 1)
        else:
            as_int("keep", keep, minimum=1)
        self.by = as_choice("by", by, BY)
        self.policy = as_choice("policy", policy, POLICIES)
        self.rescale = as_bool("rescale", rescale)
        self.over_ranks = as_bool("over_ranks", over_ranks)
        self.epsilon = as_float("epsilon", epsilon, low=0.0, high=1.0)
        self.power = as_float("power", power, low=0.0)
        self.label_smoothing = as_float("label_smoothing", label_smoothing, low=0.0, high=1.0)
        self.ignore_index = as_int(
            "ignore_index", ignore_index, minimum=-MAX_INT64 - 1, maximum=MAX_INT64
        )
        if self.power not in (0.5, 1.0):
            raise ValueError(f"power must be 0.5 or 1, got {power!r}")
        self._check_policy()
        self._given_seed = as_int("seed", seed) % 2**64
        self._ranks = distributed.resolve(process_group)
        # Read by the kernels, and advanced on the device after each call.
        self._seed = torch.zeros((), dtype=torch.int64, device=as_device("device", device))
        self._seed.fill_(as_int64(self._first_seed(self._given_seed)))
        self._num_rows: int | None = None  # of each process's batch, once all have compared theirs
        if self.over_ranks:
            self._ranks.check_device(self.device)
            self._ranks.check_settings(self._settings(), self.device)

    def _settings(self) -> dict[str, Any]:
        """Returns what decides a choice by given scores."""
        names = ("keep", "by", "policy", "rescale", "epsilon", "power", "label_smoothing", "seed")
        return {name: getattr(self, name) for name in names}

    def _check_policy(self) -> None:
        if self.policy == "weighted" and self.by == "margin":
            raise ValueError(
                "by='margin' does not fit policy='weighted', which needs scores >= 0: use "
                "'percentile', which draws by ranks"
            )
        if not self.rescale:
            return
        if self.policy == "top_k" or (self.policy == "epsilon_greedy" and self.epsilon == 0.0):
            raise ValueError(
                f"rescale=True does not fit policy={self.policy!r}, which never takes some rows: "
                "no weights make up for them; use 'weighted', 'percentile', or "
                "'epsilon_greedy' with epsilon > 0"
            )
        if self.policy == "weighted" and self.by == "excess":
            raise ValueError(
                "rescale=True does not fit policy='weighted' with by='excess': rows below their "
                "reference weigh nothing and are never taken; use 'percentile'"
            )

    @property
    def device(self) -> torch.device:
        """Where the logits must be."""
        return self._seed.device

    @property
    def seed(self) -> int:
        """The seed, in [0, 2**64)."""
        return self._given_seed

    def num_chosen(self, num_rows: int) -> int:
        """Returns how many of `num_rows` rows a call chooses, for each process.

        Args:
            num_rows: Rows of the batch, at least 1.

        Raises:
            TypeError: `num_rows` is no int.
            ValueError: `num_rows` is below 1, or below the number that `keep` names.
        """
        num_rows = as_int("num_rows", num_rows, minimum=1)
        if hasattr(self.keep, "__index__") and int(self.keep) > num_rows:
            raise ValueError(
                f"keep must be at most the {num_rows} rows of the batch, got {self.keep}: give a "
                "fraction, or leave a smaller last batch out (drop_last=True)"
            )
        return resolve_keep(self.keep, num_rows)

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, target: Tensor, reference: Tensor | None = None
    ) -> BatchChoice:
        """Chooses rows of a batch by its logits, without waiting.

        Args:
            logits: [B, C] float32, float16, bfloat16 or float64, on `device`; detached.
            target: [B] int64, int32 or uint8 class indices; or [B, C] class probabilities, floating
                point.
            reference: [B] floating point, what `by="excess"` subtracts from the losses; such as
                the loss of a model that was trained on held-out data.

        Returns:
            The rows, and their weights.

        Raises:
            TypeError: An argument has the wrong type, or `reference` is missing or surplus.
            ValueError: An argument has the wrong dtype, shape or device.
            IndexError: A target is out of range (CPU; on CUDA the row's loss is NaN, and
                `functional.check_errors` raises).
        """
        if (reference is None) == (self.by == "excess"):
            wanted = "given" if self.by == "excess" else "left out"
            raise TypeError(f"reference must be {wanted} with by={self.by!r}")
        scored = functional.scored_cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        if self.by == "margin":
            scores = -scored.margin
        elif self.by == "excess":
            check_vector("reference", reference, FLOATING, scored.loss)
            assert reference is not None
            scores = scored.loss - reference
        else:
            scores = getattr(scored, self.by)
        if not is_soft(target):
            scores = scores.masked_fill(ignored_rows(target, self.ignore_index), -torch.inf)
        return self.choose(scores)

    @torch.no_grad()
    def choose(self, scores: Tensor) -> BatchChoice:
        """Chooses rows of a batch by scores of your own, without waiting.

        Args:
            scores: One score per row, floating point [B], on `device`; detached. Greater scores
                rank first, NaN before all others. -inf ranks last and weighs nothing.

        Returns:
            The rows, and their weights.

        Raises:
            TypeError: `scores` is no tensor.
            ValueError: `scores` has the wrong dtype, shape, length or device; with `over_ranks`,
                also another length than in another process, or than in the first call.
        """
        check_vector("scores", scores, FLOATING)
        if scores.device != self.device:
            raise ValueError(
                f"scores must be on {self.device}, got {scores.device}: make the selector with "
                f"device='{scores.device}'"
            )
        if not len(scores):
            raise ValueError("the length of scores must be at least 1, got 0")
        k, values, size = self.num_chosen(len(scores)), scores.detach().to(torch.float32), 1
        if self.over_ranks:
            self._check_num_rows(len(scores))
            size = self._ranks.size
            values = self._ranks.gather(values.contiguous()).view(-1)
        choice = self._choose(values, size * k)
        self._seed.add_(1)  # after the kernels that read it, in the order of the stream
        if size == 1 or choice.weights is None:
            return choice
        first = self._ranks.rank * k
        return BatchChoice(choice.rows, choice.weights[first : first + k])

    def _check_num_rows(self, num_rows: int) -> None:
        """Raises unless all processes have batches of the length that they had at first."""
        if self._num_rows is None:
            lengths = {"the length of the batch": num_rows}
            self._ranks.agree("BatchSelector", self.device, lambda: lengths)
            self._num_rows = num_rows
        if num_rows != self._num_rows:
            raise ValueError(
                f"the batch must have {self._num_rows} rows, as at the first call with "
                f"over_ranks=True, got {num_rows}: leave a smaller last batch out (drop_last=True)"
            )

    @torch.no_grad()
    def take(self, choice: BatchChoice, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns this process's chosen rows of the tensors of a batch, without waiting.

        With `over_ranks` it is collective: rows come from the processes that have them. Each sends
        R * k rows, whatever was chosen.

        Args:
            choice: The choice for this batch.
            *tensors: Tensors of the batch, [B, ...] of any dtype, on `device`.

        Returns:
            The rows of each tensor, [k, ...], in the order of `choice`.

        Raises:
            TypeError: `choice` is none, or a tensor is none.
            ValueError: A tensor has another length or device, or requires a gradient.
        """
        check_type("choice", choice, BatchChoice)
        for number, tensor in enumerate(tensors):
            check_dealt(f"tensors[{number}]", tensor, self.device, self._num_rows)
            if not self.over_ranks and len(tensor) < len(choice.rows):
                raise ValueError(
                    f"tensors[{number}] must have the rows of its batch, at least "
                    f"{len(choice.rows)}, got {len(tensor)}"
                )
        ranks = self._ranks if self.over_ranks else distributed.Ranks()
        return tuple(deal_rows(tensor, choice.rows, ranks) for tensor in tensors)

    def _choose(self, scores: Tensor, k: int) -> BatchChoice:
        num_rows, seed = len(scores), self._seed
        if self.policy == "uniform":
            rows = functional.select_uniform(
                num_rows, k, seed=seed, device=self.device, order="ascending"
            )
            return BatchChoice(rows, torch.ones_like(scores[:k]) if self.rescale else None)
        ranking = self._ranking(scores, k)
        if self.rescale and self.policy != "epsilon_greedy":
            return BatchChoice(*functional.select_rescaled(ranking, num_rows, k, seed=seed))
        rows = functional.select(ranking, num_rows, k, seed=seed, device=self.device)
        if not self.rescale:
            return BatchChoice(rows, None)
        return BatchChoice(rows, epsilon_weights(scores, rows, self.epsilon, seed))

    def _ranking(self, scores: Tensor, k: int) -> Ranking:
        if self.policy == "weighted":
            return Ranking.by_score_weight(scores, power=self.power)
        if self.policy == "percentile":
            return Ranking.by_weight(percentile_weights(scores, k))
        return Ranking.by_score(
            scores, random_share=self.epsilon if self.policy == "epsilon_greedy" else 0.0
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what decides the choices to come: seed and number of calls. Waits.

        All processes that were called as often have the same state.
        """
        calls = (int(self._seed) - self._first_seed(self._given_seed)) % 2**64
        return {
            "version": STATE_VERSION,
            "by": self.by,
            "policy": self.policy,
            "seed": self._given_seed,
            "calls": calls,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; a captured graph goes on from there, too.

        The saved seed replaces the selector's own.

        Args:
            state_dict: From `state_dict`.

        Raises:
            TypeError: The state is no mapping, or an entry has the wrong type.
            ValueError: The state is damaged, or of another version, score or policy. Nothing
                changes then.
        """
        read = StateReader("state_dict", state_dict)
        read.has(["version", "by", "policy", "seed", "calls"])
        for name, mine in (("version", STATE_VERSION), ("by", self.by), ("policy", self.policy)):
            read.same(name, mine)
        seed = read.integer("seed", 0, 2**64 - 1)
        calls = read.integer("calls", 0, 2**64 - 1)
        self._seed.fill_(as_int64(self._first_seed(seed) + calls))
        self._given_seed = seed

    def _first_seed(self, seed: int) -> int:
        rank = 0 if self.over_ranks else self._ranks.rank
        return derive_seed(seed, "batch selection", rank)

    def __repr__(self) -> str:
        """Tells how the selector was made."""
        return (
            f"BatchSelector({self.keep}, by={self.by!r}, policy={self.policy!r}, "
            f"rescale={self.rescale}, over_ranks={self.over_ranks}, seed={self._given_seed}, "
            f"device='{self.device}')"
        )
