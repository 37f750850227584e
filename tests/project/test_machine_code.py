# SPDX-License-Identifier: Apache-2.0
"""The gates of `make kernels` on machine code count what runs for every element, and no more."""

import re

import kernel_resources
import machine_code
import pytest
from machine_code import LoopCost, ReadCost
from paths import ROOT

KERNEL = "wide_step_kernel<SlicedRow<float, ClusterTeam>>"
MANGLED = "_Zwide"
SOFT_KERNEL = "soft_step_kernel<SoftTeamRow<float, float, 32>>"
LABELS_KERNEL = "binary_step_kernel<float, 8>"

# A row loop around two hot loops. The first has a rare part in line, entered by a branch. The
# second has one behind the end of the kernel, and a branch on an operand. A third loop reads the
# row again where it is not in shared memory.
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
STS.128 [R3], R4
@P2 BRA 0x0020
LDS.128 R4, [R3]
MUFU.EX2 R4, R4
MUFU.EX2 R5, R5
MUFU.EX2 R6, R6
MUFU.EX2 R7, R7
BRA P3, 0x0200
STG.E.128 [R2], R4
IADD3 R2, R2, 0x10, RZ
@P4 BRA 0x00f0
LDG.E.128 R4, [R2]
MUFU.EX2 R4, R4
MUFU.EX2 R5, R5
MUFU.EX2 R6, R6
MUFU.EX2 R7, R7
@P4 BRA 0x0180
@P5 BRA 0x0010
EXIT
FADD R4, R4, R5
BRA 0x0150
""".strip().splitlines()
READ = 10  # 0x20 to 0xe0, without three rare ones
GRADIENT = 9


def disassembly(instructions: list[str] = INSTRUCTIONS) -> str:
    lines = [f"\t\tFunction : {MANGLED}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for place, instruction in enumerate(instructions):
        lines.append(f"        /*{16 * place:04x}*/                   {instruction} ;  /* 0x00 */")
        lines.append("                                                        /* 0x000fe200 */")
    return "\n".join(lines)


def costs(kernel: str = KERNEL) -> list[LoopCost]:
    return machine_code.loop_costs(machine_code.parse_disassembly(disassembly()), {MANGLED: kernel})


def test_instructions_of_rare_parts_do_not_count():
    assert len(machine_code.parse_disassembly(disassembly())[MANGLED]) == len(INSTRUCTIONS)
    (cost,) = costs()
    assert (cost.targets, cost.kernel, cost.element) == ("classes", KERNEL, "float")
    assert cost.read == READ / 4 and cost.gradient == GRADIENT / 4
    assert cost.vectors == 1, "the loop has one load"


def test_the_steps_of_all_targets_and_teams_are_hot():
    for team in (8, 32, 256):
        (cost,) = costs(f"step_kernel<StagedTeamRow<float, {team}>>")
        assert (cost.targets, cost.read) == ("classes", READ / 4)
    (cost,) = costs(SOFT_KERNEL)
    figures = (cost.targets, cost.read, cost.gradient, cost.vectors)
    assert figures == ("probabilities", READ / 4, GRADIENT / 4, None)
    (cost,) = costs(LABELS_KERNEL)
    assert (cost.targets, cost.read, cost.gradient) == ("labels", GRADIENT / 4, 0)
    for other in ("step_kernel<ColumnRow<float, 8>>", "loss_kernel<float>"):
        assert costs(other) == []


@pytest.fixture
def one_kernel(monkeypatch):
    monkeypatch.setattr(kernel_resources, "LOOP_KERNELS", {"classes": 1})
    monkeypatch.setattr(kernel_resources, "FEWEST_VECTORS", 1)

    def limit(*limits: float) -> None:
        elements = dict.fromkeys(("float", "Half", "BFloat16"), limits)
        monkeypatch.setattr(kernel_resources, "LOOP_LIMITS", {"classes": elements})

    return limit


def test_a_loop_above_its_limit_or_lost_is_a_failure(one_kernel, monkeypatch):
    wrong = kernel_resources.loops_over_limit
    one_kernel(2.5, 2.25, 4.75)
    assert wrong(costs()) == []
    one_kernel(2.0, 2.25, 4.75)
    assert len(wrong(costs())) == 1
    one_kernel(2.5, 2.25, 4.75)
    assert len(wrong([LoopCost("classes", KERNEL, "float", float("inf"), 2.0)])) == 2
    assert len(wrong([])) == 1
    monkeypatch.setattr(kernel_resources, "FEWEST_VECTORS", 2)
    assert len(wrong(costs())) == 1


def test_float16_may_not_cost_more_than_bfloat16(one_kernel, monkeypatch):
    one_kernel(9, 9, 9)
    monkeypatch.setattr(kernel_resources, "LOOP_KERNELS", {"classes": 2})
    half, bfloat16 = (LoopCost("classes", f"k<{e}>", e, 2.0, 1.0) for e in ("Half", "BFloat16"))
    assert kernel_resources.loops_over_limit([half, bfloat16]) == []
    costly = LoopCost("classes", "k<Half>", "Half", 2.0, 1.5)
    assert len(kernel_resources.loops_over_limit([costly, bfloat16])) == 1


def test_vectors_are_in_flight_in_the_loop_with_the_fewest():
    load = [f"LDG.E.128 R{r}, [R2.64]" for r in (20, 24, 28)]
    store = "STS.128 [R3], R20"
    # Three at once, then two; a scalar is no vector. What no loop reads does not count.
    loops = [*load, store, "@P0 BRA 0x0000", *load[:2], "LDG.E R9, [R2.64]", store]
    code = code_of([*loops, "@P0 BRA 0x0050", *load, "EXIT"])
    assert machine_code.vectors_in_flight(code) == 2
    assert machine_code.vectors_in_flight(code_of([*load, "EXIT"])) == 0


@pytest.mark.parametrize("targets", machine_code.STEP_KERNELS)
@pytest.mark.parametrize("element", ["float", "Half", "BFloat16"])
def test_every_element_type_has_limits(targets, element):
    assert len(kernel_resources.LOOP_LIMITS[targets][element]) == 3
    assert kernel_resources.LOOP_KERNELS[targets] > 0
    cost = LoopCost(targets, KERNEL, element, 1.0, 2.0)
    assert kernel_resources.loop_table([cost]).count("\n") == 3


# ---- the read of a selection

CLASSIFY = "classify_kernel<ScoreRanking<float>>"
SAMPLES = machine_code.SAMPLES_PER_THREAD


def code_of(instructions: list[str]) -> list[machine_code.Instruction]:
    return machine_code.parse_disassembly(disassembly(instructions))[MANGLED]


def classify_code(hashed: str = "rarely", loads: int = SAMPLES) -> list[machine_code.Instruction]:
    """A kernel that loads, votes twice for each sample, and hashes ids where a branch says so."""
    load = [f"LDG.E R{10 + r}, desc[UR4][R2.64+{hex(1024 * r)}]" for r in range(loads)]
    load += ["IADD3 R40, R10, R11, RZ"] + ["LDG.E R9, desc[UR4][R2.64]"] * (SAMPLES - loads)
    vote = [
        line
        for r in range(SAMPLES)
        for line in (f"ISETP.GT.U32.AND P0, PT, R{10 + r}, R5, PT", *["VOTE.ANY R6, PT, P0"] * 2)
    ]
    hashing = ["IMAD R7, R7, 0x7feb352d, RZ"] * (2 * SAMPLES if hashed == "each, rarely" else 2)
    head = ["MOV R1, c[0x0][0x28]", *load, *vote]
    behind = 16 * (len(head) + 1 + len(hashing))
    jump = "NOP" if hashed == "always" else f"@!P1 BRA {behind:#06x}"
    return code_of([*head, jump, *hashing, "EXIT"])


def read_cost(code: list[machine_code.Instruction], name: str = CLASSIFY) -> ReadCost:
    (cost,) = machine_code.read_costs({MANGLED: code}, {MANGLED: name})
    return cost


def test_loads_are_in_flight_until_one_of_their_registers_is_named():
    four = [f"LDG.E.64 R{r}, desc[UR4][R2.64]" for r in (10, 12, 14, 16)]
    assert machine_code.loads_in_flight(code_of([*four, "EXIT"])) == 4
    # By its upper half, as an address of 64 bits, overwritten, as a store's value, and not at all.
    for use in ("IADD3 R5, R11, R6, RZ", "LDG.E R5, desc[UR4][R10.64]", "MOV R10, RZ"):
        assert machine_code.loads_in_flight(code_of([*four[:3], use, four[3], "EXIT"])) == 3
    assert machine_code.loads_in_flight(code_of([*four[:3], "NOP", four[3], "EXIT"])) == 4
    # What is in flight behind a jump, or where another one arrives, is not known.
    for jump in ("@P0 BRA 0x0000", "@P0 BRA 0x0050"):
        code = code_of([*four[:3], jump, four[3], "EXIT"])
        assert machine_code.loads_in_flight(code) == 3
    entered = code_of(["@P0 BRA 0x0030", *four, "EXIT"])
    assert machine_code.loads_in_flight(entered) == 2


def test_a_sample_costs_what_is_executed_with_all_loads_and_ballots():
    cost = read_cost(classify_code())
    assert (cost.kernel, cost.ranking, cost.loads) == (CLASSIFY, "ScoreRanking", SAMPLES)
    # The first, the loads and their use, three instructions a sample, the jump, the end.
    assert cost.instructions == (1 + SAMPLES + 1 + 3 * SAMPLES + 2) / SAMPLES
    assert cost.multiplications == 0
    assert read_cost(classify_code("always")).multiplications == 2
    without = [i for i in classify_code() if not i.opcode.startswith("VOTE")]
    addresses = [machine_code.Instruction(16 * n, i.text) for n, i in enumerate(without)]
    assert read_cost(addresses[:-4] + code_of(["EXIT"])).instructions == float("inf")
    other = read_cost(classify_code(), "select_on_chip_kernel<ScoreRanking<float>>")
    assert (other.loads, other.instructions) == (SAMPLES, None)


def test_the_hashes_of_keys_are_part_of_a_sample_s_cost():
    code = classify_code()
    name = "classify_kernel<WeightRanking<float>>"
    assert read_cost(code, name).instructions == float("inf"), "no way hashes every weight"
    hashing = [i.text for i in code if "0x7feb352d" in i.text] * SAMPLES
    head = [i.text for i in code[:-4]]
    weights = code_of(
        [*head, f"@!P1 BRA {16 * (len(head) + 1 + len(hashing)):#06x}", *hashing, "EXIT"]
    )
    cost = read_cost(weights, name)
    assert cost.instructions == len(weights) / SAMPLES
    assert cost.multiplications == 0, "of a weight of zero"
    assert cost.tie_multiplications == 0


def test_reads_that_miss_a_limit_are_failures(monkeypatch):
    limits = {"ScoreRanking": 1}
    monkeypatch.setattr(kernel_resources, "READ_KERNELS", limits)
    wrong = kernel_resources.reads_over_limit
    assert wrong([read_cost(classify_code())]) == []
    assert len(wrong([read_cost(classify_code(loads=11))])) == 1
    assert len(wrong([read_cost(classify_code("always"))])) == 1
    assert len(wrong([read_cost(classify_code("each, rarely"))])) == 1
    assert len(wrong([ReadCost(CLASSIFY, "ScoreRanking", 16, 41.0, 0)])) == 1
    assert len(wrong([ReadCost(CLASSIFY, "ScoreRanking", 16, float("nan"), 0)])) == 1
    assert len(wrong([])) == 1
    assert "| 16 |" in kernel_resources.read_table([read_cost(classify_code())])


def test_fences_are_found_where_none_is_needed():
    code = code_of(["MEMBAR.ALL.GPU", "CCTL.IVALL", "EXIT"])
    found = machine_code.fences({MANGLED: code}, {MANGLED: "list_kernel<ScoreRanking<float>>"})
    assert len(kernel_resources.needless_fences(found)) == 1
    assert machine_code.fences({MANGLED: code}, {MANGLED: "resolve_kernel<float>"}) == {}
    clean = machine_code.fences({MANGLED: code_of(["EXIT"])}, {MANGLED: "positions_kernel"})
    assert kernel_resources.needless_fences(clean) == []
    assert len(kernel_resources.needless_fences({})) == 1


def test_the_size_of_a_module_has_a_limit():
    most = kernel_resources.MOST_MODULE_BYTES - kernel_resources.HOST_BYTES
    assert kernel_resources.module_too_large(7 * most, 7) == []
    assert len(kernel_resources.module_too_large(7 * most + 7, 7)) == 1


def test_the_gate_knows_the_kernels():
    """Samples of a thread, and loads of a sample, as the sources have them."""
    csrc = ROOT / "csrc"
    threads = int(
        re.search(
            r"kClassifyThreads = (\d+)",
            (csrc / "kernels/selection/select_classify.cuh").read_text(),
        )[1]
    )
    words = int(re.search(r"kWordsPerTile = (\d+)", (csrc / "device/compact.h").read_text())[1])
    assert words * 32 // threads == machine_code.SAMPLES_PER_THREAD
    rankings = (csrc / "shared/ranking.h").read_text()
    for ranking, loads in machine_code.LOADS_PER_SAMPLE.items():
        body = rankings[rankings.index(f"struct {ranking} {{") :]
        assert int(re.search(r"kLoads = (\d+)", body)[1]) == loads
    assert kernel_resources.READ_KERNELS.keys() == machine_code.LOADS_PER_SAMPLE.keys()
    rows = (csrc / "kernels/scoring/logit_rows.cuh").read_text()
    vectors = re.search(r"kLoadsInFlight = sizeof\(T\) == 8 \? 1 : (\d+)", rows)[1]
    assert int(vectors) == kernel_resources.FEWEST_VECTORS
