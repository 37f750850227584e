# SPDX-License-Identifier: Apache-2.0
"""Comparisons of saved states, bit for bit."""

import torch


def assert_same(one, other, but=()):
    """Two states, bit for bit."""
    one, other = ({**state.get("table", {}), **state} for state in (one, other))
    assert one.keys() == other.keys()
    if but:
        but = (*but, "version")  # which ends with a checksum of all
    for name in one.keys() - {"table", *but}:
        if isinstance(one[name], torch.Tensor):
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert other[name] == one[name], name


def assert_same_as_whole(state, expected):
    """A state put together from its pieces, against one of a single process."""
    expected = {**expected, **expected["table"]}
    assert state.keys() == expected.keys() - {"table", "repeat"}
    for name in state.keys() - {"version"}:  # it ends with a checksum of repeats, too
        if isinstance(state[name], torch.Tensor):
            torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert state[name] == expected[name], name


def joined(lists):
    """The items of all lists, in one."""
    return [item for one in lists for item in one]
