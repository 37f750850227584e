# SPDX-License-Identifier: Apache-2.0
"""What is known of each sample."""

from dynprune_cuda.functional.score_updates import FIRST_VISITS, FirstVisit
from dynprune_cuda.scores.history import History
from dynprune_cuda.scores.table import COLUMNS, FORGETTING, ScoreTable

__all__ = ["COLUMNS", "FIRST_VISITS", "FORGETTING", "FirstVisit", "History", "ScoreTable"]
