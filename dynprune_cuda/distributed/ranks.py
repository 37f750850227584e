# SPDX-License-Identifier: Apache-2.0
"""The processes that train together, and their collectives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda._checks.arguments import as_device
from dynprune_cuda._schedule.seeds import as_int64

SETTING_BYTES = 96  # of each setting's text, when all ranks compare theirs
# In place of a process group:
_LOST = "lost"  # of an object that was unpickled
_EARLY = "not initialised"  # of one that was made before torch.distributed was
NUMBERS = 8  # that ranks compare at most in `agree`
ERROR_BYTES = 512  # of each rank's error, when others tell of it


@contextmanager
def telling_of_lost_ranks() -> Iterator[None]:
    """Says what a collective's own error means: the backends only speak of connections."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError, but of this process
        raise
    except RuntimeError as error:
        raise RuntimeError(
            "another process of the group is gone, or did not answer within the group's timeout: "
            "start all processes again from the last checkpoint. "
            f"The backend says: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


class Ranks:
    """The processes that train together, and the place of this one among them.

    Attributes:
        rank: Number of this process, from 0 to `size - 1`.
        size: How many processes there are.
    """

    def __init__(self, group: Any = None, rank: int = 0, size: int = 1) -> None:
        """Holds a process group (None: the default one) and this process's place in it.

        Args:
            group: A process group; None: the default one.
            rank: The number of this process, from 0.
            size: How many processes there are.
        """
        self._group = group
        self.rank = rank
        self.size = size

    def add_up_(self, values: Tensor) -> Tensor:
        """Replaces `values` by their sum over all ranks, and returns them. Collective.

        Args:
            values: A tensor of the same shape and dtype on every rank.
        """
        if self.size > 1:
            with telling_of_lost_ranks():
                dist.all_reduce(values, dist.ReduceOp.SUM, self._group)
        return values

    def gather(self, mine: Tensor) -> Tensor:
        """Returns the tensors of all ranks, equal in shape, as [size, ...]. Collective.

        Args:
            mine: The tensor of this rank.
        """
        return mine[None] if self.size == 1 else self._gather(mine)

    def transpose(self, rows: Tensor) -> Tensor:
        """Sends an equal part of the rows to each rank, and returns what each sent here.

        Collective; does not wait.

        Args:
            rows: [size * k, ...] of any dtype, ordered by the rank that the rows are for; the same
                shape and dtype on every rank.

        Returns:
            [size * k, ...], ordered by the rank that they come from.
        """
        if self.size == 1 or rows.numel() == 0:
            return rows
        # As bytes: not every backend knows every dtype.
        sent = rows.reshape(len(rows), -1).contiguous().view(torch.uint8)
        received = torch.empty_like(sent)
        with telling_of_lost_ranks():
            dist.all_to_all_single(received, sent, group=self._group)
        return received.view(rows.dtype).view(rows.shape)

    def exchange(self, columns: list[Tensor], counts: Tensor) -> list[Tensor]:
        """Sends rows to all ranks, and returns what they sent, by rank. Collective; waits.

        Args:
            columns: Tensors [rows], ordered by the rank that the rows are for.
            counts: How many rows are for each rank, int64 [size].
        """
        if self.size == 1:
            return columns
        expected = torch.empty_like(counts)
        with telling_of_lost_ranks():
            dist.all_to_all_single(expected, counts, group=self._group)
            sent, coming = torch.stack([counts, expected]).tolist()
        # All memory first: if there is too little, that is this process's own error.
        results = [column.new_empty(sum(coming)) for column in columns]
        with telling_of_lost_ranks():
            for result, column in zip(results, columns, strict=True):
                dist.all_to_all_single(result, column, coming, sent, self._group)
        return results

    @property
    def group(self) -> Any:
        """The process group; None is the default one."""
        return self._group

    def check_alone(self) -> None:
        """Raises if this process turned out to be one of several."""
        if self._group == _EARLY and dist.is_available() and dist.is_initialized():
            size = dist.get_world_size()
            if size > 1:
                raise RuntimeError(
                    f"the pruner was made before torch.distributed was initialised, with {size} "
                    "processes: make it after init_process_group, or with process_group=False if "
                    "this process trains alone"
                )

    def share_length(self, count: int, drop_last: bool = False) -> int:
        """Returns how many of `count` ids each rank gets: rounded up, or down with `drop_last`.

        Args:
            count: How many ids there are.
            drop_last: Whether ids that do not divide are left out.
        """
        return count // self.size if drop_last else -(-count // self.size)

    def share(self, order: Tensor) -> Tensor:
        """Returns this rank's part of `order`: the positions that are `rank` modulo `size`.

        A rank whose part is shorter than another's repeats its first id. If there are more ranks
        than ids, a rank without ids repeats an id of another rank.

        Args:
            order: int64 [count], at least one id.

        Returns:
            int64 [share_length(count)]. Without its last id where ranks differ in length, that is,
            cut to `share_length(count, drop_last=True)`, no id is in it twice.
        """
        if self.size == 1:
            return order
        own = order[self.rank :: self.size]
        if len(own) == self.share_length(len(order)):
            return own.clone()
        first = self.rank if len(own) else self.rank % len(order)
        return torch.cat([own, order[first : first + 1]])

    def check_settings(self, settings: Mapping[str, Any], device: torch.device) -> None:
        """Raises on every rank if the settings of any two differ. One collective; waits.

        Args:
            settings: The same names on every rank.
            device: Where the collective's buffers live.

        Raises:
            ValueError: A setting differs.
        """
        if self.size == 1:
            return
        texts = [_text(settings[name]) for name in settings]
        mine = torch.tensor([list(text.ljust(SETTING_BYTES)) for text in texts], dtype=torch.uint8)
        gathered = self._gather(mine.to(device)).cpu()
        for number, name in enumerate(settings):
            values = [bytes(rank[number].tolist()).decode().rstrip() for rank in gathered]
            self._check_equal(f"{name} must be the same on every rank", values)

    def check_device(self, device: torch.device, name: str = "device") -> None:
        """Raises ValueError if the group's collectives cannot reach tensors on `device`.

        Args:
            device: Where the tensors are.
            name: What the error calls it.
        """
        if self.size == 1:
            return
        reached = self._reached()
        if device.type not in reached:
            raise ValueError(
                f"{name} must be one that the process group can reach, {' or '.join(reached)}, got "
                f"'{device}': the scores are exchanged where they live"
            )

    def buffer_device(self, wanted: Any) -> torch.device:
        """Returns a device for `agree`: `wanted` where the group can reach it, or one that it can.

        A rank whose arguments are wrong needs one, too: else its error would not reach the others.

        Args:
            wanted: The device that a user passed, perhaps a wrong one.
        """
        try:
            device = as_device("device", wanted)
        except (TypeError, ValueError):
            device = torch.device("cpu")
        if self.size == 1 or device.type in self._reached():
            return device
        if "cpu" in self._reached():
            return torch.device("cpu")
        return as_device("device", self._reached()[0])

    def _reached(self) -> list[str]:
        """Returns the types of the devices whose tensors the group can exchange."""
        config = str(dist.get_backend_config(self._group))
        return sorted(part.split(":")[0] for part in config.split(","))

    def agree(
        self,
        what: str,
        device: torch.device,
        prepare: Callable[[], Mapping[str, int]],
        vote: bool = False,
    ) -> bool:
        """Checks that all ranks are in the same place. One small collective; waits.

        Args:
            what: What the ranks are about to do together.
            device: Where the collective's buffers live.
            prepare: Does what may fail on one rank only, and returns what all must agree about.
            vote: This rank's answer to a question.

        Returns:
            Whether any rank answered yes.

        Raises:
            RuntimeError: `prepare` failed on another rank, whose error is told.
            ValueError: The ranks disagree.
            Exception: What `prepare` raised on this rank, whatever happens to the others.
        """
        if self.size == 1:
            prepare()
            return vote
        error: Exception | None = None
        numbers: Mapping[str, int] = {}
        compared: list[int] = []
        try:
            numbers = prepare()
            compared = [as_int64(int(number)) for number in numbers.values()]
        except Exception as caught:
            error = caught
        words = [int(error is not None), int(vote), *compared]
        words += [0] * (2 + NUMBERS - len(words))
        try:
            gathered = self._gather(torch.tensor(words, dtype=torch.int64, device=device)).tolist()
            failed = [rank for rank, theirs in enumerate(gathered) if theirs[0]]
            texts = self._errors(error, device) if failed else []
        except RuntimeError:
            if error is not None:  # of more use than that another process is gone
                raise error from None
            raise
        if error is not None:
            raise error
        if failed:
            first = failed[0]
            raise RuntimeError(
                f"{what} failed on rank {failed}, whose own error tells why; that of rank {first} "
                f"is {texts[first]}"
            )
        for number, name in enumerate(numbers, start=2):
            values = [theirs[number] for theirs in gathered]
            self._check_equal(f"{what} found ranks that differ: {name} must be the same", values)
        return any(theirs[1] for theirs in gathered)

    def _errors(self, mine: Exception | None, device: torch.device) -> list[str]:
        """Returns the type and the message of each rank's error, "" where there is none."""
        text = b""
        if mine is not None:
            text = f"{type(mine).__name__}: {mine}".encode("ascii", "backslashreplace")
        padded = torch.tensor(list(text[:ERROR_BYTES].ljust(ERROR_BYTES)), dtype=torch.uint8)
        gathered = self._gather(padded.to(device)).cpu()
        return [bytes(theirs.tolist()).decode().rstrip() for theirs in gathered]

    def _gather(self, mine: Tensor) -> Tensor:
        """Returns the tensors of all ranks, [size, ...]."""
        if self._group == _LOST:
            raise RuntimeError(
                "this pruner was unpickled, and a process group is not pickled: make a new pruner "
                "with process_group=, and load this one's state_dict into it"
            )
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with telling_of_lost_ranks():
            dist.all_gather(everyone, mine, self._group)
        return torch.stack(everyone)

    def _check_equal(self, what: str, values: list[Any]) -> None:
        ranks: dict[Any, list[int]] = {}
        for rank, value in enumerate(values):
            ranks.setdefault(value, []).append(rank)
        if len(ranks) > 1:
            found = ", ".join(f"{value} on rank {them}" for value, them in ranks.items())
            raise ValueError(f"{what}, got {found}; this is rank {self.rank}")

    def __deepcopy__(self, _memo: dict[int, Any]) -> Ranks:
        """Returns the object itself, which never changes."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the group behind: a process that unpickles it looks for its own place."""
        group = self._group if self._group in (None, _EARLY) else _LOST
        return _unpickled, (group, self.rank, self.size)

    def __repr__(self) -> str:
        """Tells the place."""
        return f"Ranks(rank={self.rank}, size={self.size})"


def _unpickled(group: str | None, rank: int, size: int) -> Ranks:
    if group is None and size > 1 and dist.is_initialized():
        return resolve(None)
    return Ranks(group, rank, size)


def resolve(process_group: Any) -> Ranks:
    """Turns what a user passes as `process_group` into the processes and this one's place.

    Args:
        process_group: A process group, None for the default one, False for this process only,
            or `Ranks`.

    Raises:
        TypeError: `process_group` is neither a process group, None nor False.
        ValueError: This process is not in the group.
    """
    if isinstance(process_group, Ranks):
        return process_group
    running = dist.is_available() and dist.is_initialized()
    if process_group is False:
        return Ranks()
    if process_group is None and not running:
        return Ranks(_EARLY)
    if type(process_group) is int and process_group == getattr(
        dist.GroupMember if dist.is_available() else None, "NON_GROUP_MEMBER", None
    ):
        raise ValueError(
            "process_group must contain this process, got what new_group returns elsewhere; "
            "process_group=False makes a pruner that knows its own process only"
        )
    if process_group is not None and not (running and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(
            "process_group must be a process group of torch.distributed, None for the default one, "
            f"or False for this process only, got {process_group!r}"
        )
    return Ranks(process_group, dist.get_rank(process_group), dist.get_world_size(process_group))


def checksum(ids: Tensor, factors: Tensor | None) -> Tensor:
    """Returns a number that tells one selection from another, 0-d int64, without waiting.

    Args:
        ids: The selection, int64 [n].
        factors: Factors of the losses of `ids`, float32 [n], or None.
    """
    keys = ids.clone() if factors is None else ids + (factors.view(torch.int32).long() << 32)
    for multiplier in (-0x61C8864680B583EB, -0x4B47D0C5A2A51B75):  # any odd numbers without pattern
        keys.mul_(multiplier)
        keys.bitwise_xor_(keys >> 29)
    return keys.sum()


def _text(value: Any) -> bytes:
    """Returns a setting as at most SETTING_BYTES bytes, equal only where it is equal."""
    shown = value if isinstance(value, str) else repr(value)
    # Functions have an address in each process, tensors of a user's policy a device.
    shown = re.sub(r" at 0x[0-9a-fA-F]+|(?<=cuda):\d+", "", shown)
    text = shown.encode("ascii", "backslashreplace")
    if len(text) <= SETTING_BYTES:
        return text
    digest = hashlib.sha256(text).hexdigest()[:16].encode()
    return text[: SETTING_BYTES - 20] + b"... " + digest
