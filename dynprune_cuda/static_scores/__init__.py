# SPDX-License-Identifier: Apache-2.0
"""Scores from before the training, for subsets that are chosen once: EL2N, GraNd, forgetting.

    from dynprune_cuda import IndexedDataset, Pruner, static_scores

    loader = DataLoader(IndexedDataset(train_set), batch_size=128, shuffle=True)
    scores = static_scores.el2n_scores(make_model, loader, epochs=10, seeds=range(3))
    pruner = Pruner(len(train_set), policy=scores.subset(keep=0.3))

Each function makes and trains a model per seed for some early epochs, measures every sample, and
averages over the seeds. The time that this takes belongs to the training that it serves.
"""

from dynprune_cuda.static_scores.forgetting import ForgettingCounter, forgetting_scores
from dynprune_cuda.static_scores.measures import el2n_scores, grand_scores, random_scores
from dynprune_cuda.static_scores.result import StaticScores

__all__ = [
    "ForgettingCounter",
    "StaticScores",
    "el2n_scores",
    "forgetting_scores",
    "grand_scores",
    "random_scores",
]
