# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_sharded_options.py` does; the results are compared there."""

import pickle
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import BATCH, N, message, train
from shard_pruner_ranks import make, start, whole
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner
from dynprune_cuda._epochs import sharded as sharded_epochs
from dynprune_cuda._schedule.schedule import num_batches
from dynprune_cuda.sharded import Shard

STRIDED, LOCAL = {"shard_layout": "strided"}, {"surplus": "local"}
OPTIONS = {"strided": STRIDED, "local": LOCAL, "both": {**STRIDED, **LOCAL}}
RUNS = [
    *(("strided", name) for name in ("ucb", "weighted", "rescaled", "static")),
    *(("local", name) for name in ("ucb", "rescaled", "static")),
    ("both", "ucb_std"),  # whose subset serves several epochs
]
# Stopped before the last batch of the first epoch, which is padded, or after one of the second.
RESUMED = [
    ("strided", "ucb", 1),
    ("strided", "rescaled", 1),
    ("local", "ucb", -1),
    ("both", "ucb_std", 1),
]


def whole_runs(rank, size):
    results = {}
    for option, name in RUNS:
        pruner = make(name, **OPTIONS[option])
        seen, subsets = train(pruner, pruner.batch_sampler(BATCH))
        results[option, name] = seen, subsets, whole(pruner, pruner.state_dict())
    return results


def dropped(rank, size):
    """As many batches on all ranks, and no sample twice."""
    pruner = make("ucb_std", **LOCAL)
    seen, subsets = train(pruner, pruner.batch_sampler(BATCH, drop_last=True))
    by_id = [list(pruner.sampler(drop_last)) for drop_last in (False, True)]
    return seen, subsets, by_id, pruner.epoch_order().tolist()


def resumed_runs(rank, size):
    """Gone on with by another pruner."""
    results = {}
    steps = num_batches(len(Shard(N, 0, size)), BATCH, False)
    for option, name, more in RESUMED:
        first = make(name, **OPTIONS[option])
        sampler = first.batch_sampler(BATCH)
        before = train(first, sampler, steps + more)[0]
        state, position = first.state_dict(), pickle.dumps(sampler.state_dict())
        second = make(name, **OPTIONS[option])
        second.load_state_dict(state)
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(pickle.loads(position))
        after = train(second, resumed)[0]
        results[option, name] = before + after, whole(second, second.state_dict())
    return results


def lengths(rank, size):
    """What is known of an epoch's length before it begins, and after."""
    found = {}
    for name in ("ucb", "static", "full"):
        pruner = make(name, **LOCAL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = [pruner.steps_per_epoch(BATCH), message(partial(pruner.total_steps, 3, BATCH))]
            pruner.set_epoch(0)
            pruner.set_epoch(1)
            after = [pruner.steps_per_epoch(BATCH), len(pruner.batch_sampler(BATCH))]
            after += [pruner.num_selected, message(partial(pruner.total_steps, 3, BATCH))]
        texts = [(str(one.message), Path(one.filename).name) for one in caught]
        found[name] = before, after, texts
    return found, make("full", **LOCAL).total_steps(3, BATCH)


class OwnRows(Dataset):
    """What a process can read that holds its own samples only."""

    def __init__(self, shard, rows):
        self.shard, self.rows = shard, rows

    def __len__(self):
        return self.shard.num_samples

    def __getitem__(self, sample_id):
        return self.rows[self.shard.positions_of(sample_id)]


def own_loader(rank, size):
    """Values of own rows, and the ids, for both kinds of shards."""
    found = []
    for options in (LOCAL, OPTIONS["both"]):
        pruner = make("static", **options)
        pruner.set_epoch(1)
        shard = pruner.table.shard
        data = IndexedDataset(OwnRows(shard, shard.ids() * 10))
        batches = DataLoader(data, batch_sampler=pruner.batch_sampler(BATCH))
        rows, ids = (torch.cat(column) for column in zip(*batches, strict=True))
        found.append((rows, ids, pruner.epoch_order()))
    return found


def trained(rank, size):
    """DDP on own samples only, one rank without any: losses of all rows, scores of each once."""
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(N, 4, generator=generator), torch.arange(N) % 2
    torch.manual_seed(1)
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    pruner = make("static", **LOCAL)
    loader = DeviceLoader(points, labels, pruner=pruner, batch_size=BATCH)
    visits, differences = 0, []
    for epoch in range(2):
        pruner.set_epoch(epoch)
        for x, y, ids in loader:
            logits = model(x)
            plain = nn.functional.cross_entropy(logits, y)
            loss = pruner.cross_entropy(logits, y, ids)
            differences.append((loss - plain).abs().item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            visits += 1
    own = pruner.selected
    pruner.set_epoch(2)
    count = whole(pruner, pruner.state_dict())["count"]
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return visits, max(differences), own, count, weights


def refused_step(rank, size):
    """A step that raises leaves the next one, with the same samples, to enter their scores."""
    found = []
    for options in (STRIDED, OPTIONS["both"]):
        pruner = Pruner(size + 1, 1.0, "ucb", sharding="shard", **options)
        pruner.set_epoch(0)
        for batch in pruner.batch_sampler(BATCH):
            ids, logits = torch.tensor(batch), torch.zeros(len(batch), 3)
            target = torch.zeros(len(batch), dtype=torch.int64)
            found.append(message(partial(pruner.cross_entropy, logits, ids + 3, ids)))
            found.append(message(partial(pruner.observe, ids, torch.ones(len(ids) + 1))))
            pruner.cross_entropy(logits, target, ids)
        pruner.set_epoch(1)
        found.append(whole(pruner, pruner.state_dict())["count"].tolist())
    return found


def few_samples(rank, size, folder):
    """As few as strided shards allow: in contiguous pieces the last ranks would have none."""

    def make_few():
        return Pruner(size + 1, 0.6, "ucb", period=1, sharding="shard", **STRIDED)

    first = make_few()
    for epoch in range(3):
        first.set_epoch(epoch)
        for batch in first.batch_sampler(2):
            first.observe(torch.tensor(batch), torch.tensor(batch) + 1.0 + epoch)
    checkpoint.save({"pruner": first.state_dict()}, checkpoint_id=folder / "few")
    second = make_few()
    state = {"pruner": second.state_dict()}
    checkpoint.load(state, checkpoint_id=folder / "few")
    second.load_state_dict(state["pruner"])
    for pruner in (first, second):
        pruner.set_epoch(3)
    ends = [(p.selected, p.epoch_order(), whole(p, p.state_dict())) for p in (first, second)]
    rows = len(first.table.mean), len(state["pruner"]["table"]["mean"].to_local())
    return ends, rows


def errors(rank, size, folder):
    last = rank == size - 1
    found = {
        "layout": message(lambda: make("ucb", "replicate", **STRIDED)),
        "surplus": message(lambda: make("ucb", "replicate", **LOCAL)),
        "choice": message(lambda: make("ucb", surplus="stay")),
        "layouts differ": message(lambda: make("ucb", **(STRIDED if last else {}))),
        "surplus differs": message(lambda: make("ucb", **(LOCAL if last else {}))),
        "few": message(lambda: Pruner(max(size - 1, 1), 1.0, sharding="shard", **STRIDED)),
    }
    pruner = make("ucb", **STRIDED)
    pruner.set_epoch(0)
    state = pruner.state_dict()
    wrong = {**state, "times_selected": torch.zeros(N)} if last else state
    found["state"] = message(lambda: pruner.load_state_dict(wrong))
    found["missing"] = message(lambda: pruner.load_state_dict({**state, "table": {}}))
    # What fails when visits are entered already: they are taken back, and wait.
    pruner.observe(torch.arange(N), torch.full((N,), float(rank)))
    before, real = pruner.table.state_dict(), sharded_epochs.respread

    def fails(*_):
        raise RuntimeError("no answer")

    sharded_epochs.respread = fails
    found["respread"] = message(pruner.state_dict)
    sharded_epochs.respread = real
    unchanged = all(
        torch.equal(column.nan_to_num(-1.0), before[name].nan_to_num(-1.0))
        for name, column in pruner.table.state_dict().items()
    )
    return found, unchanged, whole(pruner, pruner.state_dict())["count"]


SCENARIOS = (whole_runs, dropped, resumed_runs, lengths, own_loader, trained, refused_step)


def work(rank, size, folder):
    """One process of a world."""
    start(rank, size, folder)
    warnings.filterwarnings("ignore", "rank .* holds none", RuntimeWarning)
    folder = Path(folder)
    results = {scenario.__name__: scenario(rank, size) for scenario in SCENARIOS}
    for scenario in (few_samples, errors):
        results[scenario.__name__] = scenario(rank, size, folder)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
