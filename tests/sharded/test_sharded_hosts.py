# SPDX-License-Identifier: Apache-2.0
"""Two hosts, made of network namespaces: torchrun on each, a sharded pruner over both."""

import os
import subprocess
import sys
import uuid

import pytest
import shard_pruner_ranks as shard_ranks
import torch
import torch.distributed as dist
from ranks import BATCH, train

SCRIPT = """
import os, sys, torch
sys.path[:0] = sys.argv[2].split(os.pathsep)
import torch.distributed as dist
import shard_pruner_ranks as shard_ranks
from ranks import BATCH, train
torch.set_num_threads(1)
dist.init_process_group("gloo")
pruner = shard_ranks.make("ucb")
seen, subsets = train(pruner, pruner.batch_sampler(BATCH))
hosts = [None] * dist.get_world_size()
dist.all_gather_object(hosts, os.environ["GROUP_RANK"])
torch.save((seen, subsets, hosts), f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts():
    """Two namespaces that reach each other by 10.233.7.1 and 10.233.7.2, and nothing else."""
    names = [f"dp{uuid.uuid4().hex[:6]}{i}" for i in range(2)]
    try:
        made = [ip("netns", "add", name).returncode for name in names]
    except FileNotFoundError:
        pytest.skip("there is no ip command")
    try:
        if any(made):
            pytest.skip("network namespaces are not permitted")
        ends = [f"v{name}" for name in names]
        link = ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        if link.returncode:
            pytest.skip(f"virtual links are not permitted: {link.stderr}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            for command in (
                ("addr", "add", f"10.233.7.{number}/24", "dev", end),
                ("link", "set", end, "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", name, *command).returncode == 0
        yield list(zip(names, ends, strict=True))
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")
def test_two_hosts_of_two_ranks_train_as_one_process(hosts, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    processes = []
    for number, (name, link) in enumerate(hosts):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=2"]
        command += ["--master-addr=10.233.7.1", "--master-port=29533", str(script)]
        command += [str(tmp_path), os.pathsep.join(sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GLOO_SOCKET_IFNAME": link,
            "OMP_NUM_THREADS": "1",
        }
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    alone = shard_ranks.make("ucb", "replicate")
    seen, subsets = train(alone, alone.batch_sampler(BATCH))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(4)]
    assert found[0][2] == ["0", "0", "1", "1"]
    for epoch, subset in enumerate(subsets):
        assert torch.equal(torch.cat([rank[1][epoch] for rank in found]), subset)
    whole = [sample_id for epoch, batch in seen if epoch == 1 for sample_id in batch]
    for rank, (its_seen, _, _) in enumerate(found):
        ids = [sample_id for epoch, batch in its_seen if epoch == 1 for sample_id in batch]
        assert ids[: len(whole[rank::4])] == whole[rank::4]
