# SPDX-License-Identifier: Apache-2.0
"""benchmarks/scoring/linear_head.py on a tiny head."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import linear_head


def test_all_ways_compute_the_same_loss() -> None:
    hidden, weight, target = linear_head.make(12, 5, 7)
    part = linear_head.chunk_sum  # not compiled
    expected = linear_head.eager(hidden, weight, target)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    ways = [linear_head.ours, lambda *x: linear_head.compiled_chunks(*x, part=part)]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        ways.append(torch.nn.functional.linear_cross_entropy)
    for way in ways:
        loss = way(hidden, weight, target)
        torch.testing.assert_close(loss, expected)
        own = torch.autograd.grad(loss, (hidden, weight))
        for gradient, wanted in zip(own, gradients, strict=True):
            torch.testing.assert_close(gradient, wanted)


@pytest.mark.slow
def test_measures_times_and_peaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {linear_head.OURS: linear_head.ours, linear_head.EAGER: linear_head.eager}
    monkeypatch.setattr(linear_head, "losses", lambda: few)  # of this process: nothing is compiled
    threads = torch.get_num_threads()
    out = tmp_path / "head.json"
    try:
        linear_head.main(["--shape", "512", "8", "20000", "--rounds", "1", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    products = {linear_head.PRODUCTS, linear_head.WHOLE}
    assert set(rows) == {linear_head.OURS, linear_head.EAGER, *products}
    # 39 MiB of logits, in chunks of 16 MiB, against all of them and their gradient.
    assert rows[linear_head.OURS]["extra_bytes"] < rows[linear_head.EAGER]["extra_bytes"]
    printed = capsys.readouterr().out
    assert "512 × 8 × 20,000" in printed and all(name in printed for name in products)
