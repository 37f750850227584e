# SPDX-License-Identifier: Apache-2.0
"""Every name that users import stays where it was, and is documented."""

import importlib
import inspect

import pytest

NAMES = {
    "dynprune_cuda": """UCB Balanced BatchChoice BatchSelector DeviceLoader EpsilonGreedy Full
        IndexedDataset InfoBatch KeptHistory Pruner RandomStatic ScoreTable ScoredLoss StaticScores
        StaticSubset Stats UniformRandom Weighted build_info functional plot_kept policies
        same_steps schedules sharded static_scores track_gradient_norm __version__""",
    "dynprune_cuda.functional": """ScoredLoss check_errors last_layer_grand permutation
        scored_cross_entropy scored_cross_entropy_step_ select_epsilon_greedy select_top_k
        select_ucb select_ucb1 select_uniform select_weighted update_scores_
        Ranking Uniform FixedIds select Tilted Trimmed inclusion_probabilities select_rescaled
        LinearScoredLoss scored_linear_cross_entropy scored_binary_cross_entropy
        scored_binary_cross_entropy_step_""",
    "dynprune_cuda.sharded": """Shard select_epsilon_greedy select_top_k select_ucb select_ucb1
        select_uniform select_weighted select select_rescaled""",
    "dynprune_cuda.policies": """UCB Adaptive Balanced Covered EpsilonGreedy Full IES InfoBatch
        OrderDP paper Policy RandomStatic RePB SeTa StaticSubset UniformRandom
        WeighingPolicy Weighted names register resolve""",
    "dynprune_cuda.scores": "ScoreTable COLUMNS FORGETTING FIRST_VISITS FirstVisit History",
    "dynprune_cuda.distributed": "Ranks Shard checksum resolve telling_of_lost_ranks",
    "dynprune_cuda.data": """BucketBatchSampler CollateWithIds DeviceLoader EpochBatchSampler
        EpochRecords EpochSampler FilteredStream IndexedDataset SeekableDataset""",
    "dynprune_cuda.data.collate": "CollateWithIds",
    "dynprune_cuda.data.bucketing": "BucketBatchSampler",
    "dynprune_cuda.data.records": "EpochRecords",
    "dynprune_cuda.data.seekable": "SeekableDataset",
    "dynprune_cuda.data.streams": "FilteredStream",
    "dynprune_cuda.data.samplers": "EpochBatchSampler EpochSampler",
    "dynprune_cuda.data.unselected": "UnselectedBatchSampler",
    "dynprune_cuda.data.indexed": "IndexedDataset",
    "dynprune_cuda.data.device_loader": "DeviceLoader",
    "dynprune_cuda.pruner": "Pruner",
    "dynprune_cuda.hooks": "track_gradient_norm",
    "dynprune_cuda.plotting": "KeptHistory plot_kept",
    "dynprune_cuda.rescoring": "Rescored",
    "dynprune_cuda.batch_selection": "BatchChoice BatchSelector",
    "dynprune_cuda.schedules": "Ramp SelectionWindow Wave growing oscillating shrinking",
    "dynprune_cuda.stats": "Stats",
    "dynprune_cuda.static_scores": """ForgettingCounter StaticScores el2n_scores forgetting_scores
        grand_scores random_scores""",
    "dynprune_cuda.integrations": "",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_stay_importable(module):
    found = importlib.import_module(module)
    for name in NAMES[module].split():
        assert hasattr(found, name), f"{module}.{name}"
    listed = set(getattr(found, "__all__", ()))
    assert listed <= set(NAMES[module].split())


@pytest.mark.parametrize("module", NAMES)
def test_functions_and_classes_are_documented(module):
    found = importlib.import_module(module)
    for name in NAMES[module].split():
        thing = getattr(found, name)
        if inspect.isfunction(thing) or inspect.isclass(thing) or inspect.ismodule(thing):
            assert thing.__doc__, f"{module}.{name}"
