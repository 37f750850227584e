# SPDX-License-Identifier: Apache-2.0
"""Runs one case, and says what is wrong with its outcome.

Right is: an exception of a documented kind whose message names an argument, and nothing changed; or
a result that a reference confirms, and nothing changed but what the call writes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
import re
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynprune_cuda._epochs.lengths import Lengths
from tests.fuzz import exotic
from tests.fuzz.case import Case, variable

DOCUMENTED = ("TypeError", "ValueError", "IndexError")
# A process has this much more memory than at its start; what asks for more fails by these words.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Unable to allocate",
)


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        kind: "accepted", "refused", "unbuildable" (an argument could not be made), "no memory"; or
            what is wrong.
        message: Details.
    """

    kind: str
    message: str = ""

    @property
    def is_right(self) -> bool:
        return self.kind in ("accepted", "refused", "unbuildable", "no memory")


def run_case(case: Case, mend: Callable[[dict[str, Any]], None] | None = None) -> Outcome:
    """Makes the call and judges it.

    Args:
        case: What to call.
        mend: Changes the names that the case is run with; for planted faults.
    """
    torch.manual_seed(0)
    space: dict[str, Any] = dict(vars(exotic))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in case.setup:
            exec(line, space)
        try:
            for name, source in case.assignments().items():
                space[name] = eval(source, space)
        except Exception as error:
            return Outcome("unbuildable", repr(error))
        given = vars(exotic)
        made = [name for name, value in space.items() if given.get(name) is not value]
        names = [name for name in dict.fromkeys([*made, *case.assignments()]) if name[:2] != "__"]
        if mend is not None:
            mend(space)
        return _judged(case, space, names)


def _judged(case: Case, space: dict[str, Any], names: list[str]) -> Outcome:
    prints = {name: fingerprint(space[name]) for name in names}
    surroundings = _surroundings()
    plain = _plain_copies(case, space, names)
    try:
        result = eval(case.call(), space)
    except Exception as error:
        changed = [name for name in names if fingerprint(space[name]) != prints[name]]
        if set(case.recipe.partial).intersection(case.malformed):
            changed = [name for name in changed if name not in case.recipe.writes]
        if changed or _surroundings() != surroundings:
            what = changed or ["the random state or a mode of torch"]
            return Outcome("changed after an error", f"{', '.join(what)}; {_told(error)}")
        return _judged_error(case, space, error)
    if _surroundings() != surroundings:
        return Outcome("changed surroundings", "the random state or a mode of torch")
    changed = [name for name in names if fingerprint(space[name]) != prints[name]]
    if surplus := [name for name in changed if name not in case.recipe.writes]:
        return Outcome("changed an argument", ", ".join(surplus))
    return _judged_result(case, space, plain, names, result)


def _judged_error(case: Case, space: dict[str, Any], error: Exception) -> Outcome:
    message = str(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY):
        return Outcome("no memory", message)
    is_abstract = any(exotic.abstract(space[name]) for name in case.assignments())
    if is_abstract and any(words in message for words in ("FakeTensor", "NVIDIA driver")):
        return Outcome("refused", message)  # by torch, which mixes no fake tensors with others
    if not kinds.intersection((*DOCUMENTED, *case.recipe.raises)):
        return Outcome("undocumented error", _told(error))
    if not case.malformed and not case.recipe.tampers:
        return Outcome("refused what is right", _told(error))
    if _calls(case, space):
        return Outcome("refused", message)
    is_named = _names(error, case, set(case.arguments))
    return Outcome("refused", message) if is_named else Outcome("unnamed error", _told(error))


def _calls(case: Case, space: dict[str, Any]) -> bool:
    """Whether a malformed argument is called as a function of a user's."""
    own = [name for name in case.recipe.calls if name in case.malformed]
    return any(callable(space[name]) for name in own)


def _names(error: Exception, case: Case, names: set[str]) -> bool:
    """Whether the message of an error names one of these arguments."""
    aliases = case.recipe.aliases
    words = [word for name in names for word in (variable(name), *aliases.get(name, ()))]
    return any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", str(error)) for word in words)


def _judged_result(
    case: Case, space: dict[str, Any], plain: dict[str, Any] | None, names: list[str], result: Any
) -> Outcome:
    values = [space[name] for name in names]
    if any(map(exotic.abstract, values)):
        concrete = [part for part in _tensors(result) if not exotic.abstract(part)]
        if concrete and case.recipe.reference is not None:
            return Outcome("wrong result", "values were computed from tensors that have none")
        return Outcome("accepted")
    # A wrapper calls the operator for each of the tensors inside; what they share is written twice.
    is_twice = case.recipe.writes and any(hasattr(value, "a") for value in values)
    if case.recipe.reference is not None and not is_twice:
        if plain is None:
            return Outcome("accepted what cannot be read", "an argument has no plain form")
        try:
            after = {name: _plain(space[name]) for name in names}
            with np.errstate(all="ignore"):
                case.recipe.reference(plain, after, _plain(result))
        except Exception as error:
            return Outcome("wrong result", _told(error))
    space["result"] = result
    try:
        for line in case.recipe.then:
            exec(line, space)
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return Outcome("no memory", str(error))
        if _calls(case, space):
            return Outcome("refused", str(error))
        late = set(case.recipe.late).intersection(case.malformed)
        if isinstance(error, TypeError | ValueError | IndexError) and _names(error, case, late):
            return Outcome("refused", str(error))
        return Outcome("failed later", _told(error))
    return Outcome("accepted")


def _told(error: Exception) -> str:
    """The kind and the message of an error, and where in the project it arose."""
    places = [
        f"{frame.filename.rsplit('/', 2)[-2]}/{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "dynprune_cuda/" in frame.filename or "fuzz/references" in frame.filename
    ]
    return f"{type(error).__name__}: {str(error)[:600]} [{' '.join(places[-3:])}]"


# ---- what must not change


def _surroundings() -> tuple[Any, ...]:
    numbers = np.random.get_state()[1]
    assert isinstance(numbers, np.ndarray)
    return (
        hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest(),
        hash(random.getstate()),
        hashlib.sha256(numbers.tobytes()).digest(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )


Seen = dict[int, tuple[int, Any]]  # the values themselves, too: an id may be used again


def fingerprint(value: Any, seen: Seen | None = None) -> Any:
    """Returns what tells whether anything inside a value changed, to be compared by ==."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return ("again", seen[id(value)][0])
    if isinstance(value, Tensor):
        return _tensor_fingerprint(value, seen)
    if value is None or isinstance(value, bool | int | float | str | bytes | complex):
        return repr(value)
    seen[id(value)] = (len(seen), value)
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return [(repr(key), fingerprint(part, seen)) for key, part in value.items()]
    if isinstance(value, list | tuple | set):
        return [type(value).__name__, *[fingerprint(part, seen) for part in value]]
    if isinstance(value, type | types.FunctionType | types.ModuleType | types.MethodType):
        return repr(value)
    if type(value) is Lengths:
        return "what the loop knows of lengths, for a warning"
    inside = getattr(value, "__dict__", None)
    if inside is None:
        return type(value).__name__
    return [type(value).__name__, fingerprint(inside, seen)]


def _tensor_fingerprint(tensor: Tensor, seen: Seen) -> Any:
    if tensor.is_nested:
        return repr(tensor)
    about = (type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape), str(tensor.device),
             tensor.requires_grad, str(tensor.layout))  # fmt: skip
    if exotic.abstract(tensor):
        return about
    with torch.no_grad():
        if hasattr(tensor, "a"):  # a wrapper, with two tensors inside
            return (*about, fingerprint(tensor.a, seen), fingerprint(tensor.b, seen))
        if tensor.layout != torch.strided:
            return (*about, repr(tensor))
        plain = tensor.detach().as_subclass(Tensor)
        storage = plain.untyped_storage()
        if storage.nbytes() > 1 << 24:
            return about
        words = torch.empty(0, dtype=torch.uint8)
        words.set_(storage)
        return (*about, plain.stride(), words.numpy().tobytes())


# ---- what references read


def _plain_copies(case: Case, space: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """Copies of the arguments as plain tensors; None if there is no reference, or no plain form."""
    if case.recipe.reference is None or any(exotic.abstract(space[name]) for name in names):
        return {} if case.recipe.reference is None else None
    try:
        return {name: _plain(space[name]) for name in names}
    except Exception:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return copy.copy(value)  # frozen; nothing writes what is inside
    return copy.deepcopy(value)


def _plain_tensor(tensor: Tensor) -> Tensor:
    tensor = getattr(tensor, "a", tensor).detach()
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        raise TypeError(f"a tensor of layout {tensor.layout} has no plain form")
    plain = tensor.as_subclass(Tensor)
    if plain.numel() and not plain.untyped_storage().nbytes():
        raise TypeError("the storage was freed")
    return plain.resolve_neg().resolve_conj().clone(memory_format=torch.contiguous_format)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
