# SPDX-License-Identifier: Apache-2.0
"""Malformed values as Python source, drawn at random; `{}` is the source of the proper value."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

ANYTHING = (
    "None", "True", "3", "-1", "1.5", "'x'", "b'x'", "[]", "()", "{}", "object()", "float('nan')",
    "1j", "np.zeros(4)", "np.array('x')", "torch.zeros(3)", "torch.tensor(2)", "print", "[1, 2]",
    "range(4)", "torch.float32", "lambda *a, **k: None", "{'a': 1}", "Uniform()",
    "Pruner", "ScoreTable(3)", "type",
)  # fmt: skip

SMALL_INTS = ("0", "1", "2", "-1", "-2", "-2**63", "np.int64(3)", "np.True_", "True", "3.0", "'3'")
INTS = (
    "0", "1", "2", "-1", "-2", "7", "2**31 - 1", "2**31", "2**32", "2**32 + 1", "2**63 - 1",
    "2**63", "2**64", "2**64 + 1", "-2**31", "-2**63", "-2**63 - 1", "10**30", "np.int64(3)",
    "np.uint8(3)", "np.int64(-3)", "np.True_", "True", "False", "3.0", "'3'", "None",
    "float('nan')", "float('inf')", "torch.tensor(3)", "torch.tensor([3])", "torch.tensor(3.0)",
    "torch.tensor(True)", "np.array(3)", "np.array([3])", "torch.tensor(3, device='meta')",
    "fake(torch.tensor(3))", "freed(torch.tensor(3))", "Fraction(3)", "Decimal(3)",
)  # fmt: skip

FLOATS = (
    "0.0", "-0.0", "1.0", "0.5", "0.3", "1e-45", "1e-320", "-0.1", "1.0000001", "2.0", "1e38",
    "3.5e38", "1e308", "float('nan')", "float('inf')", "-float('inf')", "2**70", "10**400", "0",
    "1", "2", "-1", "True", "None", "'0.5'", "'nan'", "0.5j", "np.float32(0.5)",
    "np.float64('nan')",
    "np.float16(0.5)", "np.array(0.5)", "np.array([0.5])", "np.array([0.5, 0.5])", "np.True_",
    "torch.tensor(0.5)", "torch.tensor([0.5])", "torch.tensor([0.5, 0.5])", "torch.tensor(1)",
    "torch.tensor(0.5, device='meta')", "fake(torch.tensor(0.5))", "freed(torch.tensor(0.5))",
    "torch.tensor(0.5, requires_grad=True)", "torch.tensor(0.5j)", "Fraction(1, 3)",
    "Decimal('0.5')", "[0.5]", "(0.5,)", "0.1 + 0.2",
)  # fmt: skip

STRINGS = (
    "''", "'Loss'", "'loss '", "'mean'", "'none'", "'x' * 1000", "b'loss'", "None", "3", "True",
    r"'\ud800'", r"'\x00'", "['loss']", "np.str_('loss')", "('loss', 'el2n')", "object()",
    "'{0}'", "'%s'",
)  # fmt: skip

BOOLS = (
    "None", "0", "1", "2", "'no'", "''", "0.5", "float('nan')", "np.True_", "np.False_", "[]",
    "torch.tensor(True)", "torch.tensor(0)", "np.array(True)", "torch.tensor([True, False])",
    "object()", "True", "False",
)  # fmt: skip

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
    "bool", "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "complex32",
)  # fmt: skip

# Forms of a tensor: other shapes, strides, memory, devices, kinds.
FORMS = (
    "{}[:-1]", "{}[:0]", "{}[None]", "{}[..., None]", "{}.flatten()", "{}[:9].sum()", "{}.flip(0)",
    "{}.repeat(2, *[1] * ({}.dim() - 1))", "{}[:1]", "strided({})", "strided({}, 3)",
    "{}.mT if {}.dim() > 1 else {}[::2]", "expanded({})", "{}.t().contiguous().t()",
    "{}.to('meta')", "fake({})", "fake({}, 'cpu')", "fake({}, 'cuda:1')", "marked({})", "two({})",
    "freed({})", "freed({})[:0]", "negated({})", "conjugated({})", "conjugated({}).imag",
    "inference({})", "from_read_only({})", "torch.nn.Parameter({}, requires_grad=False)",
    "torch.nn.Parameter({}.float())", "{}.clone().requires_grad_()",
    "({}.clone().requires_grad_() * 1)", "{}.to_sparse()", "{}.to_sparse()[:1]", "quantized({})",
    "nested({})", "{}.to_mkldnn()", "{}.tolist()", "{}.numpy()", "{}.float().to_sparse_csr()",
    "{}.clone().as_strided({}.shape, [0] * {}.dim())", "torch.zeros(2**31, dtype=torch.uint8,"
    " device='meta')", "torch.zeros(1).expand(2**40)", "list({})", "{}.to_dense()",
    "torch.empty(0, 2**33, device='meta')", "{}.clone().share_memory_()",
)  # fmt: skip

# In no other form: others would read memory that is gone, or for minutes.
ALONE = ("freed", "2**40")

# Values at one place of a tensor.
FLOAT_ELEMENTS = ("float('nan')", "float('inf')", "-float('inf')", "-0.0", "-1.0", "3e38", "1e-45")
INT_ELEMENTS = (
    "-1", "-2", "-100", "-2**63", "2**63 - 1", "2**31", "2**31 - 1", "-2**31", "2**32", "127",
    "255",
)  # fmt: skip


def kind_of(value: Any) -> str:
    """The name of the pool that replaces a value."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, bool):
        return "bool"
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind.__name__
    return "other"


def malformed(draw: random.Random, source: str, kind: str, others: list[str]) -> str:
    """Returns the source of what may take the place of an argument.

    Args:
        draw: Decides.
        source: Of the proper value.
        kind: See `kind_of`.
        others: Names of tensors that were made before, to share memory with.
    """
    if kind == "tensor" and draw.random() < 0.85:
        return _tensor(draw, source, others)
    pool = {"int": INTS, "small": SMALL_INTS, "float": FLOATS, "str": STRINGS, "bool": BOOLS}.get(
        kind
    )
    if pool is not None and draw.random() < 0.85:
        return draw.choice(pool)
    return draw.choice(ANYTHING)


def _tensor(draw: random.Random, source: str, others: list[str]) -> str:
    way = draw.random()
    if way < 0.15:
        return f"{source}.to(torch.{draw.choice(DTYPES)})"
    if way < 0.4:
        elements = FLOAT_ELEMENTS if draw.random() < 0.6 else INT_ELEMENTS
        for _ in range(draw.choice((1, 1, 2, 5))):
            source = f"with_element({source}, {draw.randrange(64)}, {draw.choice(elements)})"
        return source
    if way < 0.5 and others:
        return draw.choice(others) + draw.choice(("", "[:]", "[:1].expand_as({})", ".view(-1)"))
    form = draw.choice(FORMS).replace("{}", source)
    if draw.random() < 0.1 and not any(one in form for one in ALONE):
        outer = draw.choice(FORMS)
        if not ("two(" in form and "share_memory_" in outer):  # ends in torch, with a crash
            form = outer.replace("{}", f"({form})")
    return form
