# SPDX-License-Identifier: Apache-2.0
"""Damaged files of states and of static scores are refused, and nothing changes."""

import io
import random
import warnings

import pytest
import torch
from states import assert_same

from dynprune_cuda import Pruner, StaticScores
from dynprune_cuda._checks import checksum as checksums
from dynprune_cuda._checks.checksum import checksum, tensor_sum

N, FILES = 3000, 300


def damaged(content, seed):
    """Bytes with one to twenty flipped bits, or every fifth time with a cut end."""
    draw = random.Random(seed)
    if seed % 5 == 0:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for place in draw.sample(range(8 * len(content)), draw.randint(1, 20)):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def visited(device="cpu", **options):
    pruner = Pruner(N, 0.3, period=1, device=device, **options)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        pruner.observe(ids, (ids.float() * 0.37 + epoch).sin().exp())
    return pruner


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"sharding": "shard"}, marks=pytest.mark.slow),
        pytest.param({"track_forgetting": True}, marks=pytest.mark.slow),
        pytest.param({"groups": torch.arange(N) % 3}, marks=pytest.mark.slow),
    ],
    ids=["replicate", "shard", "forgetting", "groups"],
)
def test_damaged_files_of_a_pruner_are_refused(options):
    file = io.BytesIO()
    state = visited(**options).state_dict()
    torch.save(state, file)
    pruner = Pruner(N, 0.3, period=1, **options)
    before, harmless = pruner.state_dict(), 0
    for seed in range(FILES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about what it reads
            try:
                read = torch.load(io.BytesIO(damaged(file.getvalue(), seed)), weights_only=True)
            except Exception:
                continue
        try:
            pruner.load_state_dict(read)
        except (TypeError, ValueError):
            assert_same(pruner.state_dict(), before)
            continue
        # The bits were those of the padding between the tensors.
        assert_same(pruner.state_dict(), state)
        pruner, harmless = Pruner(N, 0.3, period=1, **options), harmless + 1
    assert harmless < FILES / 20
    pruner.load_state_dict(state)


def test_flipped_bits_of_any_column_are_refused():
    """Without the help of the file format, which has checksums of its own."""
    state = visited().state_dict()
    pruner = Pruner(N, 0.3, period=1)
    before = pruner.state_dict()
    draw = random.Random(0)
    columns = [("table", name) for name in state["table"]]
    columns += [(None, name) for name in ("subset", "times_selected", "turnover")]
    for _ in range(FILES):
        changed = {**state, "table": dict(state["table"])}
        above, name = draw.choice(columns)
        place = changed if above is None else changed[above]
        place[name] = place[name].clone()
        flat = place[name].view(-1)
        words = flat if flat.dtype == torch.bool else flat.view(torch.uint8)
        for row in draw.sample(range(len(words)), min(draw.randint(1, 20), len(words))):
            words[row] = ~words[row] if flat.dtype == torch.bool else words[row] ^ 1 << row % 8
        with pytest.raises(ValueError, match=r"damaged|of another run"):
            pruner.load_state_dict(changed)
    assert_same(pruner.state_dict(), before)


def test_damaged_files_of_static_scores_are_refused(tmp_path):
    scores = StaticScores(torch.rand(N), "el2n", (1, 2), 10, "digits")
    scores.save(tmp_path / "sound")
    content, harmless = (tmp_path / "sound").read_bytes(), 0
    for seed in range(FILES):
        (tmp_path / "damaged").write_bytes(damaged(content, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read = StaticScores.load(tmp_path / "damaged")
            except ValueError as error:
                assert "damaged" in str(error) or "another version" in str(error)
                continue
        assert torch.equal(read.values, scores.values) and repr(read) == repr(scores)
        assert read.versions == scores.versions
        harmless += 1
    assert harmless < FILES / 10


def test_values_of_static_scores_are_covered(tmp_path):
    StaticScores(torch.rand(9), "el2n", about="digits").save(tmp_path / "scores")
    state = torch.load(tmp_path / "scores", weights_only=True)
    for change in (
        {"values": state["values"].flip(0)},
        {"values": -state["values"]},
        {"about": "digit"},
        {"seeds": [1]},
        {"epochs": 1},
        {"versions": {}},
        {"checksum": "0" * 32},
    ):
        torch.save({**state, **change}, tmp_path / "changed")
        with pytest.raises(ValueError, match="damaged: its contents do not match its checksum"):
            StaticScores.load(tmp_path / "changed")
    del state["checksum"]  # as version 0.1.0 wrote it
    torch.save(state, tmp_path / "old")
    assert torch.equal(StaticScores.load(tmp_path / "old").values, state["values"])


def test_a_square_that_overflows_leaves_a_sound_state(device):
    pruner = Pruner(4, 2, "ucb", alpha=1.0, device=device)
    pruner.set_epoch(0)
    for value in (1.0, 1e30, -3e38, 3e38):
        pruner.observe(torch.arange(4), torch.full((4,), value))
    other = Pruner(4, 2, "ucb", alpha=1.0, device=device)
    other.load_state_dict(pruner.state_dict())
    assert_same(other.state_dict(), pruner.state_dict())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("mean", float("inf")),
        ("mean", -float("inf")),
        ("mean", float("nan")),
        ("variance", float("inf")),
        ("variance", float("nan")),
        ("variance", -1.0),
    ],
)
def test_impossible_numbers_of_a_visited_sample_are_refused(column, value, device):
    table = Pruner(4, 2, "ucb", device=device).table
    table.update(torch.arange(3), torch.ones(3))
    state = table.state_dict()
    state[column][1] = value
    with pytest.raises(ValueError, match=rf"\['{column}'\] is damaged"):
        table.load_state_dict(state)
    state = table.state_dict()
    state["mean"][3] = 1.0
    with pytest.raises(ValueError, match=r"\['mean'\] is damaged: a sample without visits"):
        table.load_state_dict(state)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ],
)
def test_sums_of_pieces_add_up_and_every_place_counts(dtype, device, monkeypatch):
    values = torch.randint(0, 2, (1001,), generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(checksums, "_BLOCK", 100)
    whole = int(tensor_sum(values.to(device)))
    assert whole == int(tensor_sum(values)) == int(tensor_sum(values.reshape(7, 11, 13)))
    parts = [int(tensor_sum(values[a:b].to(device), a)) for a, b in ((0, 0), (0, 400), (400, 1001))]
    assert (sum(parts) - whole) % 2**64 == 0
    assert int(tensor_sum(values[::7])) == int(tensor_sum(values[::7].clone()))
    seen = {whole}
    for place in range(0, 1001, 50):
        other = values.clone()
        other[place] = 1 - other[place].int()
        seen.add(int(tensor_sum(other)))
    for place in range(50):
        if values[place] != values[place + 1]:
            other = values.clone()
            other[place], other[place + 1] = values[place + 1], values[place]
            seen.add(int(tensor_sum(other)))
    assert len(seen) > 30


def test_sums_are_those_of_integers_modulo_2_to_the_64(device):
    words = torch.randint(-(2**31), 2**31, (500,), generator=torch.Generator().manual_seed(0))
    factors = checksums._odd_numbers(500, torch.device("cpu")).tolist()
    assert len(set(factors)) == 500 and all(factor % 2 for factor in factors)
    block = checksums._odd_number(0)
    expected = block * sum(a * b for a, b in zip(words.tolist(), factors, strict=True))
    assert (int(tensor_sum(words.int().to(device))) - expected) % 2**64 == 0


def test_nans_and_signs_count():
    for one, other in ((0.0, -0.0), (float("nan"), float("inf")), (float("nan"), -float("nan"))):
        assert tensor_sum(torch.tensor([one])) != tensor_sum(torch.tensor([other]))


def test_checksums_count_names_types_and_shapes():
    base = {"a": 1, "b": {"c": torch.zeros(4), "d": "x"}}
    others = (
        {"a": 1.0, "b": base["b"]},
        {"a": 2, "b": base["b"]},
        {"a": True, "b": base["b"]},
        {"a": 1, "b": {**base["b"], "d": "y"}},
        {"a": 1, "b": {**base["b"], "c": torch.zeros(2, 2)}},
        {"a": 1, "b": {**base["b"], "c": torch.zeros(4, dtype=torch.int32)}},
        {"a": 1, "b": {"e": torch.zeros(4), "d": "x"}},
        {"a": 1},
    )
    assert len({checksum(state) for state in (base, *others)}) == 1 + len(others)
    assert checksum({"b": {"d": "x", "c": torch.zeros(4)}, "a": 1}) == checksum(base)
    assert checksum(base) == checksum(base, {"b.c": (4, int(tensor_sum(torch.zeros(4))))})
