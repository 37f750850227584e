# SPDX-License-Identifier: Apache-2.0
"""Scores for static subsets, computed once per seed, kept on disk, with what they cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.records import Run
from benchmarks.sweep.config import Static
from benchmarks.training.methods import Loss, make_plan
from benchmarks.training.training import Source, Trainer, new_model
from dynprune_cuda import StaticScores
from dynprune_cuda.static_scores import (
    el2n_scores,
    forgetting_scores,
    grand_scores,
    random_scores,
)

__all__ = ["StaticSubsets", "replace_text"]


class StaticSubsets:
    """Scores by kind and seed.

    Models are trained by the same loop, for the first epochs of a full run. EL2N and both forms of
    GraNd look at the same ones, which are trained once; the cost of each counts them in full.

    `saved` is called after scores or a model were computed and are on the disk; what it raises
    loses nothing. The models for forgetting are not kept, and only their scores count.
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
        """The scores for a training with `seed`, and what they are and cost."""
        path, facts_path = self._files(kind, seed)
        if self.has(kind, seed):
            size = self.source.num_samples
            scores = StaticScores.load(path, num_samples=size, about=self.about)
            return scores, json.loads(facts_path.read_text())
        scores, facts = self._compute(kind, seed)
        scores.save(path)
        replace_text(facts_path, json.dumps(facts) + "\n")
        self.saved()
        return scores, facts

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
    """Trains models for scores; notes how long that takes, or took when it was done."""

    def __init__(self, subsets: StaticSubsets) -> None:
        self._subsets = subsets
        self.seconds = 0.0  # of training, then or now
        self.waited = 0.0  # now

    def once(self, model: nn.Module, *, epochs: int, seed: int, loss: Loss) -> None:
        """Trains, unless a model of this seed is there from the scores of another kind."""
        start = time.perf_counter()
        path = self._subsets.folder / f"model-{seed}-epochs{epochs}.pt"
        device = self._subsets.source.settings.device
        if path.is_file():
            state = torch.load(path, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
        else:
            state = {"seconds": self._train(model, epochs, seed, None)}
            new = path.with_suffix(".new")
            torch.save({**state, "model": model.state_dict()}, new)
            os.replace(new, path)
            self._subsets.saved()
        self.seconds += state["seconds"]
        self.waited += time.perf_counter() - start

    def anew(self, model: nn.Module, *, epochs: int, seed: int, loss: Loss) -> None:
        """Trains with the loss that is given, which counts."""
        start = time.perf_counter()
        self.seconds += self._train(model, epochs, seed, loss)
        self.waited += time.perf_counter() - start

    def _train(self, model: nn.Module, epochs: int, seed: int, loss: Loss | None) -> float:
        source, settings = self._subsets.source, self._subsets.source.settings
        plan = make_plan(
            "full",
            source.num_samples,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            rules=settings.rules,
            keep=None,
            seed=seed,
            device=settings.device,
        )
        if loss is not None:
            plan.loss = loss
        trainer = Trainer(source, plan, Run("full", "", seed), model=model, evaluate=False)
        return trainer.train(epochs=epochs).train_seconds


def _model_seed(seed: int, index: int) -> int:
    """Of a model for scores; far from the seeds of trainings."""
    return 1_000_000 + 1_000 * seed + index


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
