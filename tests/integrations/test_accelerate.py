# SPDX-License-Identifier: Apache-2.0
"""Accelerate in one process; `test_framework_ranks.py` has two."""

import pytest
from plain_loop import BATCH, DATA, EPOCHS, make_net, make_optimizer, make_pruner, plain_run
from runs import assert_same_state
from torch.utils.data import DataLoader

accelerate = pytest.importorskip("accelerate")
from dynprune_cuda.integrations.accelerate import prepare_loader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@pytest.fixture
def make():
    """Makes what a script has; Accelerate's state is that of the process, and goes again."""

    def parts(batched=True, **options):
        accelerator = accelerate.Accelerator(cpu=True, **options)
        pruner = make_pruner(device=accelerator.device)
        how = (
            {"batch_sampler": pruner.batch_sampler(BATCH)}
            if batched
            else {"sampler": pruner.sampler(), "batch_size": BATCH}
        )
        model = make_net()
        model, optimizer = accelerator.prepare(model, make_optimizer(model))
        loader = prepare_loader(accelerator, DataLoader(DATA, **how))
        accelerator.register_for_checkpointing(pruner)
        return accelerator, pruner, model, optimizer, loader

    yield parts
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def train(parts, folder=None, skip=0):
    """Trains to the end; saves after every third step into `folder`."""
    accelerator, pruner, model, optimizer, loader = parts
    seen = []
    for epoch in range(pruner.epoch, EPOCHS):
        pruner.set_epoch(epoch)
        rest = accelerate.skip_first_batches(loader, skip) if skip else loader
        for number, (x, y, ids) in enumerate(rest, start=skip + 1):
            accelerator.backward(pruner.cross_entropy(model(x), y, ids))
            optimizer.step()
            optimizer.zero_grad()
            seen.append((epoch, ids.tolist()))
            if folder is not None and len(seen) % 3 == 0:
                accelerator.save_state(str(folder / f"{len(seen)}-{number}"))
        skip = 0
    return seen


@pytest.mark.parametrize("batched", [True, False])
def test_a_prepared_loader_follows_the_pruner(make, batched):
    parts = make(batched)
    assert parts[0].prepare(parts[-1]) is parts[-1]
    reference = make_pruner()
    expected, _ = plain_run(reference)
    assert train(parts) == expected
    # The loader is one batch ahead of the training, and yet the scores went to their samples.
    assert_same_state(parts[1], reference)


@pytest.mark.parametrize("stateful", [False, True])
def test_a_saved_run_goes_on_bit_for_bit(make, tmp_path, stateful):
    """From the middle of an epoch, by skipping batches or with torchdata's loader."""
    options = {}
    if stateful:
        pytest.importorskip("torchdata.stateful_dataloader")
        config = accelerate.utils.DataLoaderConfiguration(use_stateful_dataloader=True)
        options["dataloader_config"] = config
    whole = make(**options)
    expected = train(whole, tmp_path)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) > 3
    for folder in folders:
        step, number = map(int, folder.name.split("-"))
        resumed = make(**options)
        resumed[0].load_state(str(folder))
        assert train(resumed, skip=0 if stateful else number) == expected[step:], folder
        assert_same_state(resumed[1], whole[1])


@pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")
def test_a_stream_is_not_divided_again(make):
    accelerator, pruner, *_ = make()
    stream = pruner.filter(range(pruner.num_samples))
    loader = prepare_loader(accelerator, DataLoader(stream, BATCH))
    assert accelerator.prepare(loader) is loader
    for epoch in range(2):
        pruner.set_epoch(epoch)
        assert sorted(i for _, ids in loader for i in ids.tolist()) == pruner.selected.tolist()
    plan = accelerate.parallelism_config.ParallelismConfig(tp_size=2)
    accelerator.state.parallelism_config = plan
    with pytest.raises(ValueError, match=r"got 1\. .* 2 processes train on the same samples"):
        prepare_loader(accelerator, DataLoader(stream, BATCH))


def test_what_does_not_fit_is_refused(make):
    accelerator, pruner, *_ = make()
    with pytest.raises(TypeError, match="loader must be a DataLoader, got list"):
        prepare_loader(accelerator, [])
    with pytest.raises(ValueError, match=r"or a stream of pruner\.filter, got BatchSampler and"):
        prepare_loader(accelerator, DataLoader(DATA, batch_size=BATCH))
    loader = DataLoader(DATA, batch_sampler=pruner.batch_sampler(BATCH))
    accelerator.dataloader_config.dispatch_batches = True
    with pytest.raises(ValueError, match="must be off, got dispatch_batches=True"):
        prepare_loader(accelerator, loader)


def test_processes_that_share_their_samples_are_not_given_different_ones(make):
    """With tensor parallelism, each group of processes is one reader of the data."""
    accelerator, pruner, *_ = make()
    loader = DataLoader(DATA, batch_sampler=pruner.batch_sampler(BATCH))
    plan = accelerate.parallelism_config.ParallelismConfig(tp_size=2)
    accelerator.state.parallelism_config = plan
    with pytest.raises(ValueError, match=r"got 1\. .* 2 processes train on the same samples"):
        prepare_loader(accelerator, loader)
