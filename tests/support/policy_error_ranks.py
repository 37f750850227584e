# SPDX-License-Identifier: Apache-2.0
"""What each of three processes of `test_policy_errors.py` does; the results are compared there."""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import message
from shard_pruner_ranks import start

from dynprune_cuda import Pruner, functional, policies, sharded
from dynprune_cuda.functional import FixedIds, Ranking, Uniform
from dynprune_cuda.sharded import Shard

N, BAD = 24, 1  # the rank that fails
TIMEOUT = 60  # seconds of the group: whoever waited in vain took as long


def fails_here():
    if dist.get_rank() == BAD and FAILING[0]:
        raise KeyError("no such column")


FAILING = [True]


class Selects:
    def select(self, table, k, *, seed):
        fails_here()
        return torch.arange(k)


class Weighs:
    weighs = True

    def weigh(self, table, *, seed):
        fails_here()
        return (torch.arange(N) % 2).float()


class Ranks(policies.Policy):
    def ranking(self, table):
        fails_here()
        return Ranking.by_score(table.ranking_mean())

    def __repr__(self):
        return "Ranks()"


class OtherRule(Ranks):
    """Its ranking on one rank is of another kind, or of none."""

    rule = None

    def ranking(self, table):
        here = dist.get_rank() == BAD and FAILING[0]
        return type(self).rule if here else Ranking.by_score(table.ranking_mean())


class NoRule(OtherRule):
    rule = "scores"


class UniformRule(OtherRule):
    rule = Uniform()


class FixedRule(OtherRule):
    rule = FixedIds(range(12))


class FixedRuleOfOtherLength(OtherRule):
    rule = FixedIds([1, 2])


def wrong_result(table, k, *, seed):
    return "ids" if dist.get_rank() == BAD and FAILING[0] else torch.arange(k)


def keep(epoch):
    fails_here()
    return 0.5


class KeepOfSecondCall:
    """A function that fails at its second call for an epoch."""

    calls = 0

    def __call__(self, epoch):
        self.calls += 1
        if self.calls > 1:
            fails_here()
        return 0.5


CASES = {
    "select": lambda: Pruner(N, 0.5, Selects(), warmup_epochs=0),
    "weigh": lambda: Pruner(N, None, Weighs(), warmup_epochs=0),
    "result": lambda: Pruner(N, 0.5, wrong_result, warmup_epochs=0),
    "ranking": lambda: Pruner(N, 0.5, Ranks(), warmup_epochs=0),
    "keep": lambda: Pruner(N, keep, Ranks(), warmup_epochs=0),
    "later keep": lambda: Pruner(N, KeepOfSecondCall(), Ranks(), warmup_epochs=0),
    **{
        f"sharded {name}": lambda policy=policy: Pruner(
            N, 0.5, policy(), warmup_epochs=0, sharding="shard"
        )
        for name, policy in {
            "ranking": Ranks,
            "no rule": NoRule,
            "uniform": UniformRule,
            "fixed": FixedRule,
            "fixed of other length": FixedRuleOfOtherLength,
        }.items()
    },
    "sharded keep": lambda: Pruner(N, keep, Ranks(), warmup_epochs=0, sharding="shard"),
    "sharded later keep": lambda: Pruner(
        N, KeepOfSecondCall(), Ranks(), warmup_epochs=0, sharding="shard"
    ),
}


def timed(function):
    started = time.monotonic()
    return message(function), time.monotonic() - started


def policy_errors():
    """Text and seconds of a failing `set_epoch`, the state after it, and of one that succeeds."""
    found = {}
    for name, make in CASES.items():
        FAILING[0] = True
        pruner = make()
        text, seconds = timed(lambda pruner=pruner: pruner.set_epoch(0))
        epochs = pruner._run.state.epoch, pruner.num_selections
        FAILING[0] = False
        again = message(lambda pruner=pruner: pruner.set_epoch(0))
        selected = pruner.num_selected if again == "no error" else None
        found[name] = text, seconds, epochs, again, selected
    return found


def selections(rank, size):
    """A tensor of one rank that the group cannot exchange, or no tensor at all."""
    shard = Shard(N, rank, size)
    good, bad = torch.rand(8), torch.rand(8, device="meta")
    mine = bad if rank == BAD else good
    rule = "rule" if rank == BAD else Ranking.by_score(good)
    calls = {
        "top_k": lambda: sharded.select_top_k(mine, 5, shard=shard),
        "weighted": lambda: sharded.select_weighted(mine, 5, shard=shard),
        "ucb": lambda: sharded.select_ucb(mine, mine, 5, shard=shard),
        "rule": lambda: sharded.select(rule, 5, shard=shard),
    }
    found = {name: timed(call) for name, call in calls.items()}
    found["after"] = len(sharded.select_top_k(good, N, shard=shard))
    return found


def constructors(rank):
    """A device that one rank cannot have."""
    return {
        device: timed(lambda device=device: Pruner(N, 0.5, device=device if rank == BAD else "cpu"))
        for device in ("cud", "meta")
    }


def leaves_early(rank, size):
    """The others are gone when the rank that fails tells of its error: it is not lost."""
    ranks = Pruner(N, 0.5).ranks
    FAILING[0] = True
    dist.barrier()
    if rank != BAD:
        return None
    time.sleep(1)
    return timed(lambda: ranks.agree("set_epoch", torch.device("cpu"), fails_here))


def work(rank, size, folder):
    """One process of a world."""
    start(rank, size, folder, seconds=TIMEOUT)
    found = {
        "policies": policy_errors(),
        "selections": selections(rank, size),
        "constructors": constructors(rank),
        "threads": functional.select_top_k(torch.rand(9), 3).tolist(),
    }
    found["early"] = leaves_early(rank, size)
    torch.save(found, Path(folder) / f"{rank}.pt")
    os._exit(0)  # the group is broken
