# SPDX-License-Identifier: Apache-2.0
"""Pruners of every kind and a training to stop and resume, for `test_resume` and `test_state`."""

import io
from itertools import islice

import torch

from dynprune_cuda import Pruner, policies

N, EPOCHS, BATCH = 60, 7, 8


def least_visited(table, k, *, seed):
    return table.count.argsort(stable=True)[:k]


MAKERS = {
    "ucb": lambda device: Pruner(N, 0.4, "ucb", period=2, seed=3, device=device),
    "epsilon_greedy": lambda device: Pruner(N, 0.4, "epsilon_greedy", period=2, device=device),
    "weighted": lambda device: Pruner(N, 0.4, "weighted", period=3, device=device),
    "uniform": lambda device: Pruner(N, 25, "uniform", period=2, seed=-1, device=device),
    "random_static": lambda device: Pruner(N, 25, "random_static", device=device),
    "full": lambda device: Pruner(N, policy="full", device=device),
    "static": lambda device: Pruner(N, None, policies.StaticSubset(range(5, 30)), device=device),
    "infobatch": lambda device: Pruner(N, policy="infobatch", epochs=EPOCHS, device=device),
    "groups": lambda device: Pruner(
        N, 0.4, "ucb", period=2, groups=torch.arange(N) % 3, device=device
    ),
    "own": lambda device: Pruner(N, 0.4, least_visited, period=2, device=device),
    "keep_list": lambda device: Pruner(
        N, [1.0, 0.9, 0.7, 0.5, 0.3], "ucb", period=2, device=device
    ),
    "keep_function": lambda device: Pruner(
        N, lambda epoch: 1.0 / (1 + epoch), "ucb", period=1, warmup_epochs=0, device=device
    ),
    "forgetting": lambda device: Pruner(
        N, 0.4, "ucb", period=2, track_forgetting=True, device=device
    ),
}


def value(epoch, ids):
    """A score that depends on the sample and the epoch; one sample is broken at times."""
    values = torch.sin(ids.float() * 12.9898 + epoch) + 1.5
    return torch.where((ids == 7) & (epoch % 2 == 1), float("nan"), values)


def correctness(pruner, epoch, ids):
    """Whether samples are right, which changes between epochs; None if nobody counts it."""
    return (ids * 7 + epoch * 5) % 4 > 1 if pruner.table.track_forgetting else None


def train(pruner, sampler, stop=None):
    """Trains until `stop` batches were seen; returns them with their epochs."""
    seen = []
    for epoch in range(pruner.epoch, EPOCHS):
        pruner.set_epoch(epoch)
        for ids in sampler:
            if stop is not None and len(seen) == stop:
                raise AssertionError("one batch too many was asked for")
            tensor = torch.tensor(ids, device=pruner.device)
            correct = correctness(pruner, epoch, tensor)
            pruner.observe(tensor, value(epoch, tensor), correct)
            seen.append((epoch, ids))
            if len(seen) == stop:
                return seen
    return seen


def save(*objects):
    """The states of the objects after a trip through a file that is loaded safely."""
    buffer = io.BytesIO()
    torch.save([thing.state_dict() for thing in objects], buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    one, other = ({**state.pop("table"), **state} for state in (one, other))
    assert one.keys() == other.keys()
    for name, mine in one.items():
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(other[name], mine, rtol=0, atol=0, equal_nan=True)
        else:
            assert other[name] == mine, name


def first_batches(pruner, queue) -> None:
    """Sends the first batches of the current epoch to another process."""
    queue.put(list(islice(pruner.batch_sampler(8), 2)))
