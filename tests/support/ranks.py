# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_distributed.py` does; the results come back to be compared there."""

import copy
import os
import pickle
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchrun_script
from runs import correctness
from runs import spreading as value
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner, functional, policies
from dynprune_cuda.scores import merge

N, EPOCHS, BATCH = 61, 7, 4


def least_visited(table, k, *, seed):
    return table.count.argsort(stable=True)[:k]


def unseeded(table, k, *, seed):
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
    return torch.randperm(table.num_samples, generator=generator)[:k]


# The last counts are below the number of ranks: some of them have no sample of their own.
KEEP = [1.0, 30, 30, 17, 3, 2, 1]
RESCALED = policies.Weighted(power=0.5, rescale=True, trim=0.2)
MAKERS = {
    "ucb": lambda **more: Pruner(N, KEEP, "ucb", period=1, seed=3, **more),
    "ucb_std": lambda **more: Pruner(N, 0.4, policies.UCB(2.0, bonus="std"), period=3, **more),
    "epsilon_greedy": lambda **more: Pruner(N, 0.4, "epsilon_greedy", period=2, **more),
    "weighted": lambda **more: Pruner(N, 0.4, "weighted", period=2, **more),
    "adaptive": lambda **more: Pruner(N, KEEP, policies.Adaptive(trim=0.1), **more),
    "rescaled": lambda **more: Pruner(N, KEEP, RESCALED, period=1, **more),
    "uniform": lambda **more: Pruner(N, 25, "uniform", period=2, seed=-1, **more),
    "full": lambda **more: Pruner(N, policy="full", **more),
    "infobatch": lambda **more: Pruner(N, policy="infobatch", epochs=EPOCHS, **more),
    "groups": lambda **more: Pruner(N, 0.4, period=2, groups=torch.arange(N) % 3, **more),
    "own": lambda **more: Pruner(N, 0.4, least_visited, period=2, **more),
    "at_once": lambda **more: Pruner(N, 0.3, "ucb", warmup_epochs=0, period=2, **more),
    "forgetting": lambda **more: Pruner(N, KEEP, period=1, track_forgetting=True, **more),
}


def train(pruner, sampler, stop=None):
    """Trains until `stop` batches were seen; returns them with their epochs, and the subsets."""
    seen, subsets = [], []
    for epoch in range(pruner.epoch, EPOCHS):
        resumed = epoch == pruner.epoch
        known = not getattr(pruner.policy, "weighs", False) and pruner.surplus == "move"
        steps = pruner.steps_per_epoch(BATCH, sampler.drop_last, epoch) if known else None
        pruner.set_epoch(epoch)
        subsets.append(pruner.selected)
        visited, batches = set(), 0
        for batch in sampler:
            ids = torch.tensor(batch)
            # A second visit would be seen: its value is another one.
            again = torch.tensor([sample_id in visited for sample_id in batch])
            visited.update(batch)
            correct = correctness(pruner, epoch, ids)
            if correct is not None:
                correct = correct ^ again
            # Scores with the factor that this process multiplies the losses by.
            values = pruner.rescale(ids, value(epoch, ids) + 100 * again)
            pruner.observe(ids, values, correct)
            seen.append((epoch, batch))
            batches += 1
            if len(seen) == stop:
                return seen, subsets
        assert resumed or batches == len(sampler) == (steps or len(sampler))
    pruner.set_epoch(EPOCHS)
    return seen, subsets


def whole_runs(rank, size):
    """Every policy, with both ways to treat a rest that does not divide."""
    results = {}
    for name, make in MAKERS.items():
        for drop_last in (False, True):
            pruner = make()
            seen, subsets = train(pruner, pruner.batch_sampler(BATCH, drop_last))
            results[name, drop_last] = (seen, subsets, pruner.state_dict())
    return results


def resumed_runs(rank, size):
    """As `whole_runs`, but stopped in the middle of an epoch and gone on with by a new pruner."""
    results = {}
    for name in ("ucb", "infobatch", "at_once", "forgetting"):
        for stop in (1, 6):
            first = MAKERS[name]()
            sampler = first.batch_sampler(BATCH)
            before = train(first, sampler, stop)[0]
            state, position = pickle.loads(pickle.dumps((first.state_dict(), sampler.state_dict())))
            second = MAKERS[name]()
            second.load_state_dict(state)
            resumed = second.batch_sampler(BATCH)
            resumed.load_state_dict(position)
            after = train(second, resumed)[0]
            results[name, stop] = (before + after, second.state_dict())
    return results


def one_state_for_all(rank, size):
    """In mid-epoch every rank goes on from what rank 0 saved; all must end alike."""
    first = MAKERS["ucb"]()
    sampler = first.batch_sampler(BATCH)
    train(first, sampler, 3)
    states = [first.state_dict(), sampler.state_dict()]
    if size > 1:
        dist.broadcast_object_list(states, 0)
    second = MAKERS["ucb"]()
    second.load_state_dict(states[0])
    resumed = second.batch_sampler(BATCH)
    resumed.load_state_dict(states[1])
    seen, subsets = train(second, resumed)
    return len(seen), subsets, second.state_dict()


def copies(rank, size):
    """A copied pruner keeps its place, and its mark of the repeated id."""
    first = MAKERS["ucb"]()
    for epoch in range(4):
        first.set_epoch(epoch)
    before, selected = first.table.count.clone(), first.selected
    batch = next(iter(first.batch_sampler(BATCH)))
    first.observe(torch.tensor(batch), torch.ones(len(batch)))
    results = []
    for pruner in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), first):
        batches = list(pruner.batch_sampler(BATCH))
        for batch in batches[1:]:
            pruner.observe(torch.tensor(batch), torch.ones(len(batch)))
        count = pruner.table.count.clone()
        results.append((batches, count, pruner.ranks.rank, before, selected))
        pruner.set_epoch(4)
    return results


def loaders(rank, size):
    """What the loaders of a DDP script hand out."""
    pruner = Pruner(N, 26, "uniform", seed=5)
    pruner.set_epoch(1)
    data = TensorDataset(torch.arange(N) * 10)
    order = pruner.epoch_order().tolist()
    by_batch = DataLoader(IndexedDataset(data), batch_sampler=pruner.batch_sampler(BATCH))
    by_id = DataLoader(
        IndexedDataset(data), sampler=pruner.sampler(True), batch_size=BATCH, drop_last=True
    )
    on_device = DeviceLoader(data.tensors[0], pruner=pruner, batch_size=BATCH, drop_last=True)
    results = [[ids.tolist() for _, ids in loader] for loader in (by_batch, by_id, on_device)]
    lengths = [len(by_batch), len(by_id), len(on_device), pruner.total_steps(4, BATCH)]
    return pruner.selected.tolist(), order, results, lengths


def ddp(rank, size):
    """Trains a model with DDP; returns what this rank observed."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(N, 4, generator=generator)
    labels = (points.sum(1) > 0).long()
    torch.manual_seed(1)
    model = nn.Linear(4, 2)
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    pruner = Pruner(N, 0.35, "ucb", period=1, seed=8)
    dataset = IndexedDataset(TensorDataset(points, labels))
    loader = DataLoader(dataset, batch_sampler=pruner.batch_sampler(BATCH))
    observed, subsets = [], []
    for epoch in range(5):
        pruner.set_epoch(epoch)
        subsets.append(pruner.selected)
        first_visits = set()
        for x, y, ids in loader:
            scores = model(x)
            losses = functional.scored_cross_entropy(scores.detach(), y).loss
            for sample_id, loss in zip(ids.tolist(), losses.tolist(), strict=True):
                if sample_id not in first_visits:
                    observed.append((epoch, sample_id, loss))
                first_visits.add(sample_id)
            optimizer.zero_grad()
            pruner.cross_entropy(scores, y, ids).backward()
            optimizer.step()
    pruner.set_epoch(5)
    subsets.append(pruner.selected)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return observed, subsets, pruner.state_dict()["table"], weights


def torch_sampler(rank, size):
    """Warm-up by torch's sampler, whose padding lets two ranks visit the same sample."""
    pruner = Pruner(N, 0.3, "ucb")
    pruner.set_epoch(0)
    places = DistributedSampler(range(N), num_replicas=size, rank=rank, shuffle=False)
    ids = torch.tensor(list(places))
    pruner.observe(ids, 10.0 * ids + rank)
    pruner.set_epoch(1)
    return pruner.table.mean.clone(), pruner.table.count.clone(), pruner.selected


def more_visits_win(rank, size):
    """Ranks that visited all samples, each another number of times."""
    pruner = Pruner(N, 0.3, "ucb", alpha=1.0)
    pruner.set_epoch(0)
    for _ in range(1 + rank % 2):
        pruner.observe(torch.arange(N), torch.full((N,), float(rank)))
    pruner.set_epoch(1)
    return pruner.table.mean.clone(), pruner.table.count.clone()


def message(function):
    """The error that a function raises, as text."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def errors(rank, size):
    """What goes wrong on one rank is an error on all of them, and the next call works."""
    last = rank == size - 1
    found = {
        "keep": message(lambda: Pruner(N, 0.4 if last else 0.3)),
        "num_samples": message(lambda: Pruner(N + last, 20)),
        "seed": message(lambda: Pruner(N, 20, seed=2**63 + last)),
        "policy": message(lambda: Pruner(N, 20, "uniform" if last else "ucb")),
        "groups": message(lambda: Pruner(N, 20, groups=torch.arange(N) % (2 + last))),
        "epochs": message(lambda: Pruner(N, 20, epochs=9 + last)),
    }
    pruner = Pruner(N, 20)
    found["epoch"] = message(lambda: pruner.set_epoch(0 + last))
    pruner.set_epoch(0)
    before = pruner.state_dict()
    by_rank = Pruner(N, lambda epoch: 20 + last, "uniform", warmup_epochs=0)
    found["keep(0)"] = message(lambda: by_rank.set_epoch(0))
    fails = Pruner(N, lambda epoch: 0 if last else 20, "uniform", warmup_epochs=0)
    found["failed"] = message(lambda: fails.set_epoch(0))
    drawn = Pruner(N, 20, unseeded, warmup_epochs=0)
    found["unseeded"] = message(lambda: drawn.set_epoch(0))
    found["too early"] = message(lambda: MAKERS["at_once"]().selected)
    pruner.set_epoch(1)
    alone = Pruner(N, 20, seed=rank, process_group=False)
    alone.set_epoch(0)
    alone.set_epoch(1)
    found["alone"] = str(len(alone.epoch_order()))
    return found, before["subset_epoch"], pruner.selected


def subgroup(rank, size):
    """All ranks but the last train together; the last one trains nothing."""
    group = dist.new_group(list(range(size - 1)))
    made = message(lambda: MAKERS["ucb"](process_group=group))
    if rank == size - 1:
        return made
    pruner = MAKERS["ucb"](process_group=group)
    seen, subsets = train(pruner, pruner.batch_sampler(BATCH))
    lost = pickle.loads(pickle.dumps(pruner))
    return seen, subsets, pruner.state_dict(), message(lambda: lost.set_epoch(0))


def late_start(rank, size):
    """Runs that begin behind the warm-up: without scores, resumed, and scored by one rank."""

    def go(pruner, epochs):
        visited = []
        for epoch in epochs:
            pruner.set_epoch(epoch)
            for batch in pruner.batch_sampler(BATCH):
                ids = torch.tensor(batch)
                pruner.observe(ids, value(epoch, ids))
                visited.append((epoch, batch))
        return visited

    found = {}
    for sharding in ("replicate", "shard"):
        make = partial(Pruner, N, 0.3, "ucb", period=2, sharding=sharding)
        whole, first, second, scored = make(), make(), make(), make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            expected = go(whole, range(3, 7))
        go(first, range(3, 4))
        second.load_state_dict(first.state_dict())
        rest = go(second, range(4, 7))
        if rank == 0:
            scored.observe(torch.arange(N), torch.rand(N))
        scored.set_epoch(3)
        texts = [str(one.message) for one in caught]
        firsts = [pruner.schedule.first_epoch for pruner in (whole, second, scored)]
        found[sharding] = expected, rest, texts, firsts
    return found


def checkpointed(rank, size):
    """What `torchrun_script.py` does, without a break."""
    with tempfile.TemporaryDirectory() as folder:
        return torchrun_script.run(Path(folder), rank, size)


SCENARIOS = (
    whole_runs,
    resumed_runs,
    one_state_for_all,
    copies,
    loaders,
    ddp,
    torch_sampler,
    more_visits_win,
    late_start,
    checkpointed,
)
WITH_OTHERS = (errors, subgroup)


def device_runs(rank, size, device):
    """Some of `whole_runs` with the scores elsewhere; results on the CPU."""
    results = {}
    for name in ("ucb", "infobatch", "groups"):
        pruner = MAKERS[name](device=device)
        seen, subsets = train(pruner, pruner.batch_sampler(BATCH))
        results[name] = (seen, [subset.cpu() for subset in subsets], pruner.table.mean.cpu())
    return results


def work_on(rank, size, folder, backend):
    """One process of a world on GPUs: one each with NCCL, a common one with gloo."""
    device = torch.device("cuda", rank if backend == "nccl" else 0)
    torch.cuda.set_device(device)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    results = device_runs(rank, size, device)
    if backend == "nccl":
        results["on the CPU"] = message(lambda: Pruner(N, 0.3, device="cpu"))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    if size > 2:
        merge.MERGED_SAMPLES = 16  # several pieces, the last one smaller
    warnings.filterwarnings("ignore", "no score was observed", RuntimeWarning)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    scenarios = SCENARIOS + (WITH_OTHERS if size > 1 else ())
    torch.save(
        {scenario.__name__: scenario(rank, size) for scenario in scenarios},
        Path(folder) / f"{rank}.pt",
    )
    dist.destroy_process_group()


def run_world(size, folder, function=work, *more):
    """Runs all scenarios, or `function`, in `size` processes; returns what each of them found."""
    # The server imports torch once (optimisers need its compiler), then forks off the ranks.
    mp.get_context("forkserver").set_forkserver_preload(["dynprune_cuda", "torch._dynamo"])
    arguments = (size, str(folder), *more)
    mp.start_processes(function, arguments, nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
