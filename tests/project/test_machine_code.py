# SPDX-License-Identifier: Apache-2.0
"""The gate of `make kernels` on the hot loops counts what runs for every element, and no more."""

import kernel_resources
import machine_code
import pytest
from machine_code import LoopCost

KERNEL = "wide_step_kernel<SlicedRow<float, ClusterTeam>>"
MANGLED = "_Zwide"

# A row loop around two hot loops. The first has a rare part in line, entered by a branch. The
# second has one behind the end of the kernel, and a branch on an operand.
INSTRUCTIONS = """
MOV R1, c[0x0][0x28]
LDG.E R9, [R2]
@!P0 LDG.E.128 R4, [R2]
BSSY B0, 0x0090
@P1 BRA 0x0080
FADD R20, R20, R21
MUFU.EX2 R20, R20
FMUL R22, R20, R20
BSYNC B0
MUFU.EX2 R4, R4
MUFU.EX2 R5, R5
MUFU.EX2 R6, R6
MUFU.EX2 R7, R7
@P2 BRA 0x0020
LDS.128 R4, [R3]
MUFU.EX2 R4, R4
MUFU.EX2 R5, R5
MUFU.EX2 R6, R6
MUFU.EX2 R7, R7
BRA P3, 0x0190
STG.E.128 [R2], R4
IADD3 R2, R2, 0x10, RZ
@P4 BRA 0x00e0
@P5 BRA 0x0010
EXIT
FADD R4, R4, R5
BRA 0x0140
""".strip().splitlines()
READ = 9  # 0x20 to 0xd0, without three rare ones
GRADIENT = 9


def disassembly() -> str:
    lines = [f"\t\tFunction : {MANGLED}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for place, instruction in enumerate(INSTRUCTIONS):
        lines.append(f"        /*{16 * place:04x}*/                   {instruction} ;  /* 0x00 */")
        lines.append("                                                        /* 0x000fe200 */")
    return "\n".join(lines)


def costs() -> list[LoopCost]:
    return machine_code.loop_costs(machine_code.parse_disassembly(disassembly()), {MANGLED: KERNEL})


def test_instructions_of_rare_parts_do_not_count():
    assert len(machine_code.parse_disassembly(disassembly())[MANGLED]) == len(INSTRUCTIONS)
    (cost,) = costs()
    assert (cost.kernel, cost.element) == (KERNEL, "float")
    assert cost.read == READ / 4 and cost.gradient == GRADIENT / 4


def test_only_the_step_on_whole_blocks_is_hot():
    kernels = machine_code.parse_disassembly(disassembly())
    for name in ("step_kernel<StagedTeamRow<float, 32>>", "loss_kernel<float>"):
        assert machine_code.loop_costs(kernels, {MANGLED: name}) == []


def test_a_loop_above_its_limit_or_lost_is_a_failure(monkeypatch):
    monkeypatch.setattr(kernel_resources, "LOOP_LIMITS", {"float": (2.5, 2.25, 4.75)})
    assert kernel_resources.loops_over_limit(costs()) == []
    monkeypatch.setattr(kernel_resources, "LOOP_LIMITS", {"float": (2.0, 2.25, 4.75)})
    assert len(kernel_resources.loops_over_limit(costs())) == 1
    lost = LoopCost(KERNEL, "float", float("inf"), 2.0)
    assert len(kernel_resources.loops_over_limit([lost])) == 2
    assert len(kernel_resources.loops_over_limit([])) == 1


def test_float16_may_not_cost_more_than_bfloat16(monkeypatch):
    monkeypatch.setattr(
        kernel_resources, "LOOP_LIMITS", dict.fromkeys(("Half", "BFloat16"), (9,) * 3)
    )
    half, bfloat16 = (LoopCost(f"k<{e}>", e, 2.0, 1.0) for e in ("Half", "BFloat16"))
    assert kernel_resources.loops_over_limit([half, bfloat16]) == []
    costly = LoopCost("k<Half>", "Half", 2.0, 1.5)
    assert len(kernel_resources.loops_over_limit([costly, bfloat16])) == 1


@pytest.mark.parametrize("element", ["float", "Half", "BFloat16"])
def test_every_element_type_has_limits(element):
    assert len(kernel_resources.LOOP_LIMITS[element]) == 3
    assert kernel_resources.loop_table([LoopCost(KERNEL, element, 1.0, 2.0)]).count("\n") == 3
