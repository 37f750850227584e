# SPDX-License-Identifier: Apache-2.0
"""What to say of a run that begins behind its warm-up, or selects without scores."""

from __future__ import annotations

from typing import Any


def about_late_warmup(epoch: int, warmup_epochs: int, policy: Any) -> str:
    """Returns what to warn of when a missed warm-up begins at `epoch`.

    Args:
        epoch: The first epoch of the run, at least 1.
        warmup_epochs: How long the warm-up is, at least 1.
        policy: The selection rule.
    """
    last = epoch + warmup_epochs - 1
    when = f"epoch {epoch} trains" if last == epoch else f"epochs {epoch} to {last} train"
    return (
        f"set_epoch({epoch}) is the first of this pruner, and {policy!r} has no scores yet: {when} "
        f"on all samples, as the warm-up that was missed; {_way_out(epoch)}"
    )


def about_no_scores(start: int, policy: Any, first: int | None) -> str:
    """Returns what to warn of when a policy selects without the scores that it needs.

    Args:
        start: The epoch of the selection.
        policy: The selection rule.
        first: The epoch that the run begins with, or None if it began before.
    """
    if first is not None:
        return (
            f"no score was observed before epoch {start}, and set_epoch({first}) is the first of "
            f"this pruner, so {policy!r} selects at random; {_way_out(first)}"
        )
    return (
        f"no score was observed before epoch {start}, so {policy!r} selects at random; compute the "
        "loss with pruner.cross_entropy(...), or call pruner.observe(ids, values), in the training "
        "loop"
    )


def _way_out(epoch: int) -> str:
    count = "epochs count from 0, so loop over range(epochs)"
    resume = "to resume a run, call pruner.load_state_dict(state) before set_epoch"
    return f"{count}; {resume}" if epoch == 1 else f"{resume}; {count}"
