# SPDX-License-Identifier: Apache-2.0
"""Baselines for the overhead of scoring and selection.

They follow the same rules as the package's policies, with eager scoring and selection on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynprune_cuda import Pruner, ScoreTable, policies

__all__ = ["HostPolicy", "PublishedInfoBatch"]


class HostPolicy:
    """UCB or epsilon-greedy with eager PyTorch operators, and selection in NumPy on the host."""

    def __init__(
        self,
        rule: policies.UCB | policies.EpsilonGreedy,
        num_samples: int,
        *,
        alpha: float,
        device: torch.device,
    ) -> None:
        self.rule, self.alpha = rule, alpha
        self.mean = torch.zeros(num_samples, device=device)
        self.variance = torch.zeros(num_samples, device=device)
        self.visited = torch.zeros(num_samples, dtype=torch.bool, device=device)

    def loss(self, logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The mean loss; updates the averages with the losses, one operator after the other."""
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        ids = ids.to(logits.device, non_blocking=True)
        values = losses.detach()
        seen, old = self.visited[ids], self.mean[ids]
        spread = (1 - self.alpha) * self.variance[ids] + self.alpha * (values - old) ** 2
        published = getattr(self.rule, "first_visit", "zero") == "published"
        first = self.alpha * values**2 if published else torch.zeros_like(values)
        self.variance[ids] = torch.where(seen, spread, first)
        mean = (1 - self.alpha) * old + self.alpha * values
        self.mean[ids] = torch.where(seen, mean, values)
        self.visited[ids] = True
        return losses.mean()

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """The ids, selected on the host; the pruner's own table is not used."""
        rng = np.random.default_rng(seed)
        scores = torch.where(self.visited, self.mean, float("inf")).cpu().numpy()
        num_random = 0
        if isinstance(self.rule, policies.UCB):
            scores = scores + self.rule.c * self.variance.cpu().numpy()
        else:
            num_random = int(self.rule.epsilon * k + 0.5)
        top = np.argpartition(-scores, k - num_random - 1)[: k - num_random]
        if num_random:
            rest = np.setdiff1d(np.arange(len(scores)), top)
            top = np.concatenate([top, rng.choice(rest, num_random, replace=False)])
        return torch.from_numpy(np.sort(top)).to(self.mean.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "visited": self.visited}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def __repr__(self) -> str:
        return f"HostPolicy({self.rule!r})"


class PublishedInfoBatch:
    """InfoBatch by the published code of its authors, if the package `infobatch` is installed.

    With current PyTorch its sampler repeats the same ids for ever. So only its scoring, weights and
    selection are used, with the loader of the other methods.
    """

    weighs = True

    def __init__(self, num_samples: int, epochs: int) -> None:
        # The import of infobatch replaces this method of every DataLoader; restore it.
        base: Any = torch.utils.data.dataloader._BaseDataLoaderIter
        method = base.__next__
        try:
            from infobatch import InfoBatch
        except ImportError as error:
            raise ImportError(
                "infobatch_published needs the released code of InfoBatch: pip install "
                "git+https://github.com/NUS-HPC-AI-Lab/InfoBatch"
            ) from error
        finally:
            base.__next__ = method
        self.published = InfoBatch(range(num_samples), epochs)
        self._annealing = False

    def loss_of(self, pruner: Pruner) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The loss in the epochs of `pruner`; all weights are 1 during annealing."""

        def loss(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
            annealing = pruner.schedule.phase(pruner.epoch) == "annealing"
            if annealing and not self._annealing:
                self.published.reset_weights()
            self._annealing = annealing
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            self.published.set_active_indices(ids.cpu())
            mean: Tensor = self.published.update(losses)
            return mean

        return loss

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """1 for the samples that stay, else 0; the published object applies its own factors."""
        np.random.seed(seed % 2**32)
        weights = torch.zeros_like(table.mean)
        weights[torch.tensor(self.published.prune(), device=weights.device)] = 1.0
        return weights

    def state_dict(self) -> dict[str, Tensor]:
        return {"scores": self.published.scores, "weights": self.published.weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self.published, name).copy_(value)

    def __repr__(self) -> str:
        return "PublishedInfoBatch()"
