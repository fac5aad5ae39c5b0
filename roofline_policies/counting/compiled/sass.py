"""SASS, the machine code of NVIDIA GPUs, as cuobjdump prints it: instructions, their kinds, and the loops they form.

A natural loop is a branch back to an instruction that dominates it, with all that reaches the branch without passing
that instruction. Loops unrolled or pipelined count as they stand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# An instruction is 128 bits, printed as two words: the second stands alone on the next line.
_SASS_LINE = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@\S+)?\s*(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
    r"(?:\s*/\* 0x(?P<low>[0-9a-f]{16}) \*/\s*/\* 0x(?P<high>[0-9a-f]{16}) \*/)?",
    re.MULTILINE,
)
_JUMPS = {"BRA", "JMP", "CALL", "BSSY", "WARPSYNC"}
_ENDS = {"EXIT", "RET", "BRX", "JMX", "KILL"}
KINDS = {
    "tensor": re.compile(r"[A-Z]*MMA"),
    "global load": re.compile(r"LDG|LDGSTS|UBLKCP|UTMALDG"),
    "barrier": re.compile(r"BAR|SYNCS|UCGABAR_\w+"),
    "spill store": re.compile(r"STL"),
    "spill load": re.compile(r"LDL"),
}
_ACCESS_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class Instruction(NamedTuple):
    """One SASS instruction: its predicate ("@!P0") or "", what it is in KINDS or "", the index a jump goes to."""

    guard: str
    opcode: str
    operands: str
    kind: str
    target: int | None
    encoding: str


class Loop(NamedTuple):
    """A natural loop: the indices of its instructions and how many of each kind (KINDS) there are."""

    body: frozenset[int]
    kinds: Counter[str]


def parse_sass(text: str) -> tuple[Instruction, ...]:
    """The instructions in what `cuobjdump -sass` prints of one function, without the padding at its end."""
    lines = list(_SASS_LINE.finditer(text))
    index = {int(line["address"], 16): at for at, line in enumerate(lines)}
    code = []
    for line in lines:
        family, operands, target = line["opcode"].partition(".")[0], line["operands"].strip(), None
        if family in _JUMPS and (address := re.search(r"0x([0-9a-f]+)$", operands)):
            target = index.get(int(address[1], 16))
            operands = operands if target is None else operands[: address.start()].strip()
        kind = next((kind for kind, families in KINDS.items() if families.fullmatch(family)), "")
        words = (line["low"] or "") + (line["high"] or "")
        code.append(Instruction(line["guard"] or "", line["opcode"], operands, kind, target, words))
    while code and code[-1].opcode == "NOP":
        code.pop()
    if code and code[-1].target == len(code) - 1:  # the trap behind the last EXIT: a branch to itself
        code.pop()
    return tuple(code)


def listing(code: Sequence[Instruction]) -> str:
    """One instruction per line, jump targets as labels numbered from the top: no addresses, encodings or names."""
    labels = {target: f"L{n}" for n, target in enumerate(sorted({i.target for i in code if i.target is not None}))}
    lines = []
    for at, i in enumerate(code):
        label = "" if i.target is None else labels[i.target]
        lines += [f"{labels[at]}:"] if at in labels else []
        lines.append(" ".join(filter(None, (i.guard, i.opcode, i.operands, label))))
    return "\n".join(lines)


def natural_loops(code: Sequence[Instruction]) -> tuple[Loop, ...]:
    """Every natural loop, merged by header, in the order of the headers; a branch to itself is a trap, not a loop."""
    edges = []
    for at, i in enumerate(code):
        family = i.opcode.partition(".")[0]
        # A branch with an operand besides its target (BRA.DIV, BRA.U) is conditional, as any guarded instruction is.
        leaves = not i.guard and (family in _ENDS or (family in ("BRA", "JMP") and not i.operands))
        edges += [] if i.target is None or family == "BSSY" else [(at, i.target)]
        edges += [] if leaves or at + 1 == len(code) else [(at, at + 1)]
    before: list[list[int]] = [[] for _ in code]
    for source, target in edges:
        before[target].append(source)
    # Bit n of dominators[at] says that every way to `at` passes n; instructions nothing reaches keep every bit.
    everything, changed = (1 << len(code)) - 1, True
    dominators = [1, *[everything] * (len(code) - 1)]
    while changed:
        changed = False
        for at in range(1, len(code)):
            common = everything
            for source in before[at]:
                common &= dominators[source]
            if (common := common | 1 << at) != dominators[at]:
                dominators[at], changed = common, True
    bodies: dict[int, set[int]] = {}
    for source, header in edges:
        if source != header and dominators[source] != everything and dominators[source] >> header & 1:
            body, todo = bodies.setdefault(header, {header}), [source]
            while todo:
                if (at := todo.pop()) not in body:
                    body.add(at)
                    todo += before[at]
    return tuple(Loop(frozenset(body), Counter(code[at].kind for at in body)) for _, body in sorted(bodies.items()))


def main_loops(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    """The loops that do a kernel's work, in the order of the code.

    They are the loops that hold tensor core instructions and no such loop inside; without tensor cores the same among
    loops that hold global loads; without either there is none.
    """
    for kind in ("tensor", "global load"):
        holding = [loop for loop in loops if loop.kinds[kind]]
        if holding:
            return tuple(loop for loop in holding if not any(other.body < loop.body for other in holding))
    return ()


def access_bytes(code: Iterable[Instruction], kind: str) -> int:
    """Bytes per thread that the instructions of this kind move; 4 for one whose opcode names no other width."""
    opcodes = [i.opcode.split(".") for i in code if i.kind == kind]
    return sum(next((_ACCESS_BYTES[part] for part in parts if part in _ACCESS_BYTES), 4) for parts in opcodes)
