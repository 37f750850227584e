# SPDX-License-Identifier: Apache-2.0
"""Pruners of every kind and a training to stop and resume, for `test_resume` and `test_state`."""

import io
from itertools import islice

import torch

from dynprune_cuda import Pruner, policies

N, EPOCHS, BATCH = 60, 7, 8


SINCE_0_2_0 = ("adaptive", "rescaled", "trimmed")  # makers of what version 0.1.0 did not have


def least_visited(table, k, *, seed):
    return table.count.argsort(stable=True)[:k]


MAKERS = {
    "ucb": lambda device: Pruner(N, 0.4, "ucb", period=2, seed=3, device=device),
    "epsilon_greedy": lambda device: Pruner(N, 0.4, "epsilon_greedy", period=2, device=device),
    "weighted": lambda device: Pruner(N, 0.4, "weighted", period=3, device=device),
    "adaptive": lambda device: Pruner(N, 0.4, policies.Adaptive(), device=device),
    "rescaled": lambda device: Pruner(
        N, 0.4, policies.Weighted(power=0.5, rescale=True), device=device
    ),
    "trimmed": lambda device: Pruner(N, 0.4, policies.Weighted(power=0.5, trim=0.2), device=device),
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


def spreading(epoch, ids):
    """The same, with a spread that grows from where `Adaptive` mixes to where it follows."""
    # Of whole tables: a batch of another size might round otherwise.
    values = ((1.6 + 0.5 * epoch) * torch.sin(torch.arange(64) * 12.9898 + epoch)).exp()
    return torch.where((ids == 7) & (epoch % 2 == 1), float("nan"), values.to(ids.device)[ids])


def tilts(pruner, epochs, batch_size):
    """The tilts of the selections of a run by `Adaptive` with the scores of `spreading`."""
    found = []
    for epoch in range(epochs):
        pruner.set_epoch(epoch)
        if epoch:
            found.append(float(pruner.policy.tilt(pruner.table)))
        for ids in pruner.batch_sampler(batch_size):
            tensor = torch.tensor(ids, device=pruner.device)
            pruner.observe(tensor, spreading(epoch, tensor))
    return found


def correctness(pruner, epoch, ids):
    """Whether samples are right, which changes between epochs; None if nobody counts it."""
    return (ids * 7 + epoch * 5) % 4 > 1 if pruner.table.track_forgetting else None


def train(pruner, sampler, stop=None):
    """Trains until `stop` batches were seen; returns them with their epochs."""
    seen = []
    scores = spreading if isinstance(pruner.policy, policies.Adaptive) else value
    for epoch in range(pruner.epoch, EPOCHS):
        pruner.set_epoch(epoch)
        for ids in sampler:
            if stop is not None and len(seen) == stop:
                raise AssertionError("one batch too many was asked for")
            tensor = torch.tensor(ids, device=pruner.device)
            correct = correctness(pruner, epoch, tensor)
            pruner.observe(tensor, scores(epoch, tensor), correct)
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
