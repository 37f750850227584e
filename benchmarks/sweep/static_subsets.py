# SPDX-License-Identifier: Apache-2.0
"""Scores for static subsets, computed once per seed and saved with their cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.records import Run
from benchmarks.common.result_files import replaced, write_text
from benchmarks.sweep.config import Static
from benchmarks.training.plans import Loss, make_plan
from benchmarks.training.source import Source, new_model
from benchmarks.training.trainer import Trainer
from dynprune_cuda import StaticScores
from dynprune_cuda.static_scores import (
    el2n_scores,
    forgetting_scores,
    grand_scores,
    random_scores,
)

__all__ = ["StaticSubsets"]


class StaticSubsets:
    """Scores by kind and seed.

    Models are trained by the same loop, for the first epochs of a full run. EL2N and both forms of
    GraNd share the same models. They are trained once, and the cost of each kind includes them.

    `saved` is called after each file with scores or a model is written. An exception from it loses
    no work. The models for forgetting are not saved.
    """

    def __init__(
        self,
        source: Source,
        how: Static,
        folder: Path,
        about: str,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.how, self.folder, self.about = source, how, folder, about
        self.saved = saved
        folder.mkdir(parents=True, exist_ok=True)

    def scores(self, kind: str, seed: int) -> tuple[StaticScores, dict[str, Any]]:
        """The scores for a training with `seed`, and their kind and cost."""
        path, cost_path = self._files(kind, seed)
        if self.has(kind, seed):
            size = self.source.num_samples
            scores = StaticScores.load(path, num_samples=size, about=self.about)
            return scores, json.loads(cost_path.read_text())
        scores, cost = self._compute(kind, seed)
        scores.save(path)
        write_text(cost_path, json.dumps(cost) + "\n")
        self.saved()
        return scores, cost

    def has(self, kind: str, seed: int) -> bool:
        """Whether these scores were computed."""
        return all(path.is_file() for path in self._files(kind, seed))

    def _files(self, kind: str, seed: int) -> tuple[Path, Path]:
        return self.folder / f"{kind}-seed{seed}.pt", self.folder / f"{kind}-seed{seed}.json"

    def _compute(self, kind: str, seed: int) -> tuple[StaticScores, dict[str, Any]]:
        training = _TrainedOnce(self)
        start = time.perf_counter()
        if kind == "random":
            scores = random_scores(self.source.num_samples, seed=seed)
            scores = StaticScores(scores.values, "random", scores.seeds, about=self.about)
        else:
            forgetting = kind == "forgetting"
            number = self.how.forgetting_models if forgetting else self.how.models
            compute: Any = {"el2n": el2n_scores, "forgetting": forgetting_scores}
            options: dict[str, Any] = {
                "seeds": [_model_seed(seed, index) for index in range(number)],
                "epochs": self.how.forgetting_epochs if forgetting else self.how.epochs,
                "train": training.anew if forgetting else training.once,
                "about": self.about,
            }
            if kind in ("grand", "grand_last"):
                options["layers"] = "all" if kind == "grand" else "last"
                options["chunk_size"] = self.how.chunk_size or None
            compute = compute.get(kind, grand_scores)
            settings, task = self.source.settings, self.source.task
            loader = self.source.scoring_loader()
            scores = compute(lambda: new_model(task, settings), loader, **options)
        measuring = time.perf_counter() - start - training.waited
        return scores, {
            "kind": kind,
            "seeds": list(scores.seeds),
            "epochs": scores.epochs,
            "seconds": training.seconds + measuring,
            "training_seconds": training.seconds,
            "measuring_seconds": measuring,
        }


class _TrainedOnce:
    """Trains models for scores, and sums up the seconds of training, saved or new."""

    def __init__(self, subsets: StaticSubsets) -> None:
        self._subsets = subsets
        self.seconds = 0.0  # of training, also of models that were loaded
        self.waited = 0.0  # spent here

    def once(self, model: nn.Module, *, epochs: int, seed: int, loss: Loss) -> None:
        """Trains, or loads the model of this seed that scores of another kind trained."""
        start = time.perf_counter()
        path = self._subsets.folder / f"model-{seed}-epochs{epochs}.pt"
        device = self._subsets.source.settings.device
        if path.is_file():
            state = torch.load(path, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
        else:
            state = {"seconds": self._train(model, epochs, seed, None)}
            with replaced(path) as new:
                torch.save({**state, "model": model.state_dict()}, new)
            self._subsets.saved()
        self.seconds += state["seconds"]
        self.waited += time.perf_counter() - start

    def anew(self, model: nn.Module, *, epochs: int, seed: int, loss: Loss) -> None:
        """Trains with the given loss, which counts forgetting events."""
        start = time.perf_counter()
        self.seconds += self._train(model, epochs, seed, loss)
        self.waited += time.perf_counter() - start

    def _train(self, model: nn.Module, epochs: int, seed: int, loss: Loss | None) -> float:
        source = self._subsets.source
        plan = make_plan("full", source.num_samples, source.settings, keep=None, seed=seed)
        if loss is not None:
            plan.loss = loss
        trainer = Trainer(source, plan, Run("full", "", seed), model=model, evaluate=False)
        return trainer.train(epochs=epochs).train_seconds


def _model_seed(seed: int, index: int) -> int:
    """The seed of a model for scores; differs from the seeds of all trainings."""
    return 1_000_000 + 1_000 * seed + index
