# SPDX-License-Identifier: Apache-2.0
"""How many samples of each group a selection takes: exact arithmetic on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

from dynprune_cuda._checks.arguments import as_choice, as_float, as_int
from dynprune_cuda._schedule.seeds import derive_seed

NAMED_SHARES = ("equal", "proportional")

ClassShares = str | Mapping[int, float]


def quotas(sizes: Sequence[int], shares: Sequence[int], k: int, *, seed: int) -> list[int]:
    """Divides `k` samples among groups in proportion to their shares, as far as they have them.

    A group that is smaller than its part gives all its samples. What it lacks goes to the others,
    in proportion to their shares. Parts are rounded down, and groups with the largest remainders
    get one more. Equal remainders are ordered by `seed`, so that no group wins every time.

    Args:
        sizes: How many samples each group has.
        shares: The share of each group, an int, 0 or more; only their ratios count.
        k: How many samples to divide, at most as many as the groups with a share above 0 have.
        seed: Decides between equal remainders.

    Returns:
        How many samples of each group, which add up to `k`.
    """
    result = [0] * len(sizes)
    is_open = [number for number, share in enumerate(shares) if share]
    total = sum(shares)
    while True:
        full = [number for number in is_open if k * shares[number] >= sizes[number] * total]
        if not full:
            break
        for number in full:
            result[number] = sizes[number]
        k -= sum(sizes[number] for number in full)
        total -= sum(shares[number] for number in full)
        is_open = sorted(set(is_open).difference(full))
    remainders = {}
    for number in is_open:
        result[number], remainders[number] = divmod(k * shares[number], total)
    more = k - sum(result[number] for number in is_open)
    tie = {number: derive_seed(seed, "remainder", number) for number in is_open if more}
    largest = sorted(tie, key=lambda number: (-remainders[number], tie[number]))
    for number in largest[:more]:
        result[number] += 1
    return result


def checked_shares(shares: Any) -> ClassShares:
    """Returns `class_shares` as a name, or as a dict by rising label of ints and floats.

    Raises:
        TypeError: `shares` is neither, or a label or a share has the wrong type.
        ValueError: The name is unknown, a share is negative, or none is positive.
    """
    if not isinstance(shares, Mapping):
        if not isinstance(shares, str):
            raise TypeError(
                "class_shares must be 'equal', 'proportional' or a dict {class: share}, got "
                f"{shares!r} of type {type(shares).__name__}"
            )
        return as_choice("class_shares", shares, NAMED_SHARES)
    result: dict[int, float] = {}
    for label, share in shares.items():
        label = as_int("a label of class_shares", label)
        name = f"class_shares[{label}]"
        is_int = hasattr(share, "__index__") and not isinstance(share, bool)
        result[label] = as_int(name, share, minimum=0) if is_int else as_float(name, share, low=0.0)
    if not any(result.values()):
        raise ValueError(f"class_shares must give a class a share above 0, got {shares!r}")
    return dict(sorted(result.items()))


def whole_shares(shares: ClassShares, labels: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns the share of each group as an int; only their ratios count.

    A float counts as the decimal number that it prints as: 0.1 and 0.2 are as 1 to 2.

    Args:
        shares: From `checked_shares`.
        labels: The label of each group.
        sizes: How many samples each group has.

    Raises:
        ValueError: `shares` lacks a label, or has one that no sample has.
    """
    if shares == "equal":
        return [1] * len(sizes)
    if not isinstance(shares, Mapping):
        return list(sizes)
    missing = [label for label in labels if label not in shares]
    if missing:
        raise ValueError(
            f"class_shares must have a share for every class of groups, 0 for none; {missing} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    unknown = sorted(shares.keys() - set(labels))
    if unknown:
        raise ValueError(f"class_shares must have no class that groups lack, got {unknown}")
    exact = [Fraction(repr(shares[label])) for label in labels]
    denominator = lcm(*(share.denominator for share in exact))
    return [int(share * denominator) for share in exact]
