"""An audit of counting that does not trust the rewriting: what a twin's TTIR does is held against what was counted.

A twin is traced once more, and each statement that counts leaves a mark there: a constant that nothing uses. The mark
and what it counts have the same place in the user's file. Every operation that touches memory or multiplies matrices
must have its mark, in the same block or at least in the same loops, for as many lanes and bytes; and no mark may be
left over. Then the TTIR that was compiled must hold no such operation but those.

The ledger's own atomics are told apart by their place: they come from the statement that ends a program, which
rewriting added, and nothing that a user wrote is there.
"""

from __future__ import annotations

import ast
import linecache
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from triton._C.libtriton import ir
from triton.compiler import make_backend

from roofline_policies.counting import slots
from roofline_policies.counting.compiled.effects import KINDS, callee, first_type, is_masked, product, unknown
from roofline_policies.counting.compiled.ttir import Operation, Place, accessed, operations
from roofline_policies.counting.rewriting.structure import MODULE
from roofline_policies.counting.rewriting.twin import Rewritten
from roofline_policies.counting.sites import Audit
from roofline_policies.counting.tracing.trace import MARK, marking
from roofline_policies.work import Precision

_HALVES = {frozenset({"max", "umin"}), frozenset({"min", "umax"})}
"""An atomic maximum or minimum of floating-point numbers is two of integers, with disjoint masks."""

_LANGUAGE = "/triton/language/"
"""In the path of every file of Triton's own language. The rest of the path differs: what Triton's cache holds may have
been compiled by another installation, whose paths it names."""


@dataclass(eq=False)
class _Mark:
    """What was counted somewhere: ``words`` of the mark, and the key under which it is counted behind its loop."""

    operation: Operation
    words: list[str]
    place: Place
    later: str = ""


@dataclass
class _Function:
    """One function of the module, as it was traced."""

    marks: list[_Mark] = field(default_factory=list)
    overs: list[_Mark] = field(default_factory=list)
    merges: list[_Mark] = field(default_factory=list)
    accesses: list[Operation] = field(default_factory=list)
    calls: list[Operation] = field(default_factory=list)


class _Trace:
    """A module as it was traced, with its marks.

    accesses: places of what moves bytes or multiplies. counted: of those that have a mark. merged: of the calls whose
    counts are added up. ledger: of the statements that write counts to the ledger. repeats: of accesses inside
    statements that count, which ask for a value that the kernel loads anyhow; the compiler makes one of the two.
    """

    def __init__(self, text: str, sources: Mapping[str, Rewritten]) -> None:
        self._sources = sources
        self.problems: list[str] = []
        self.counted: dict[tuple[Place, str], Operation] = {}
        self.accesses: set[tuple[Place, str]] = set()
        self.merged: set[Place] = set()
        self.ledger: set[Place] = set()
        self.repeats = {place for file, rewritten in sources.items() for place in _repeats(file, rewritten.source)}
        self._functions: dict[str, _Function] = defaultdict(_Function)
        for operation in operations(text):
            self._read(operation)
        for function in self._functions.values():
            self._pair(function)
        for function in self._functions.values():
            self._pair_calls(function)

    def original(self, place: Place) -> Place:
        """The place in the user's file."""
        file, line, column = place
        if file not in self._sources:
            return place
        rewritten = self._sources[file]
        line, column = rewritten.places.get((line, column), (rewritten.original.__code__.co_firstlineno, 1))
        return rewritten.original.__code__.co_filename, line, column

    def where(self, *chain: Place) -> str:
        """The first place of a chain that is not in Triton's own language, as people read it, and what stands there."""
        places = [self.original(place) for place in chain]
        for file, line, _ in (*(one for one in places if _LANGUAGE not in one[0]), *places):
            return f"{file}:{line}: {linecache.getline(file, line).strip()}"
        return "at an unknown place"

    def _place(self, operation: Operation) -> Place:
        chain = operation.location.chain
        return self.original(chain[0]) if chain else ("", 0, 0)

    def _read(self, operation: Operation) -> None:
        function = self._functions[operation.function]
        name, chain = operation.location.name, operation.location.chain
        if operation.name == "arith.constant" and name.startswith(MARK) and chain:
            mark = _Mark(operation, name.removeprefix(MARK).split(" "), self._place(operation))
            match mark.words[0]:
                case "flush":
                    self.ledger.add(chain[0])
                case "later":
                    function.marks[-1].later = mark.words[1]
                case "over":
                    function.overs.append(mark)
                case "merge":
                    function.merges.append(mark)
                case _:
                    function.marks.append(mark)
        elif operation.name in KINDS and not is_of_the_ledger(operation, self.ledger):
            if not chain or chain[0] not in self.repeats:
                function.accesses.append(operation)
        elif operation.name == "tt.call":
            function.calls.append(operation)

    def _pair(self, function: _Function) -> None:
        left = list(function.marks)
        second: set[tuple[Place, frozenset[str]]] = set()
        for operation in function.accesses:
            kind, place = KINDS[operation.name], self._place(operation)
            self.accesses |= {(one, kind) for one in operation.location.chain[:1]}
            beside = [mark for mark in left if mark.words[0] == kind and mark.place == place]
            mark = _nearest(operation, beside)
            if mark is not None:
                left.remove(mark)
                self._compare(operation, mark)
            elif both := _around_a_while(operation, beside):
                left = [one for one in left if one not in both]
                self._compare(operation, both[0])
            elif (half := _half(operation)) and (place, half) in second:
                second.discard((place, half))
                continue
            else:
                self._problem(operation, f"{operation.name} is not counted")
                continue
            if half := _half(operation):
                second.add((place, half))
            self.counted.setdefault((operation.location.chain[0], kind), operation)
        for mark in left:
            self._problem(mark.operation, f"a {mark.words[0]} is counted that is not there, or once too often")
        self._behind_loops(function)

    def _behind_loops(self, function: _Function) -> None:
        """A site that is counted behind its loop has to be, once for each loop."""
        owed: Counter[tuple[Any, str]] = Counter()
        loops: set[tuple[int, str]] = set()
        for mark in function.marks:
            if mark.later:
                around = [(number, holder) for name, number, holder in mark.operation.regions if name == "scf.for"]
                number, holder = around[-1] if around else (0, None)
                owed[holder, mark.later] += (number, mark.later) not in loops
                loops.add((number, mark.later))
        paid = Counter((mark.operation.block, mark.words[1]) for mark in function.overs)
        for mark in (*function.marks, *function.overs):
            key = mark.later or (mark.words[1] if mark.words[0] == "over" else "")
            wrong = {which for which in owed | paid if which[1] == key and owed[which] != paid[which]}
            if key and wrong:
                self._problem(mark.operation, "is not counted once behind its loop")
                owed = Counter({which: n for which, n in owed.items() if which not in wrong})
                paid = Counter({which: n for which, n in paid.items() if which not in wrong})

    def _pair_calls(self, function: _Function) -> None:
        left = list(function.merges)
        for call in function.calls:
            mark = _nearest(call, [mark for mark in left if mark.place == self._place(call)])
            if mark is not None:
                left.remove(mark)
                self.merged.add(call.location.chain[0])
            elif self._counts(callee(call), set()):
                self._problem(call, "what the function called here counts is lost")
        for mark in left:
            self._problem(mark.operation, "what the function called here counts is added twice")

    def _counts(self, name: str, seen: set[str]) -> bool:
        """Whether a function, or one it calls, has marks."""
        if name in seen or name not in self._functions:
            return False
        seen.add(name)
        function = self._functions[name]
        return bool(function.marks) or any(self._counts(callee(call), seen) for call in function.calls)

    def _compare(self, operation: Operation, mark: _Mark) -> None:
        """Whether as much was counted as the operation moves or multiplies."""
        if operation.name == "tt.dot":
            flops, slot = product(operation)
            if int(mark.words[1]) != flops:
                self._problem(operation, f"{mark.words[1]} FLOPs are counted for {flops}")
            elif slot is not None and int(mark.words[2]) not in (slot, slots.DOT[Precision.FP8]):
                self._problem(operation, "FLOPs are counted for another precision")
        elif operation.name not in ("tt.dot_scaled", "tt.descriptor_gather", "tt.descriptor_scatter"):
            moved = accessed(first_type(operation))
            size, lanes = int(mark.words[1]), int(mark.words[2])
            if moved is not None and moved != (lanes, size):
                told = f"{lanes} lanes of {size} bytes are counted for {moved[0]} of {moved[1]}"
                self._problem(operation, told)
            elif mark.words[3] == "all" and operation.name in ("tt.load", "tt.store") and is_masked(operation):
                self._problem(operation, "it has a mask, and all lanes are counted")

    def _problem(self, operation: Operation, what: str) -> None:
        self.problems.append(f"{self.where(*operation.location.chain)}: {what}")


def is_of_the_ledger(operation: Operation, ledger: set[Place]) -> bool:
    """Whether an atomic adds counts to the ledger: it stands where rewriting put the statement that does."""
    chain = operation.location.chain
    return operation.name == "tt.atomic_rmw" and bool(chain) and chain[0] in ledger


def _nearest(operation: Operation, marks: list[_Mark]) -> _Mark | None:
    """The first mark in the block of an operation, else in the same loops: what may not be evaluated has an `if`."""
    for mark in marks:
        if mark.operation.block == operation.block:
            return mark
    return next((mark for mark in marks if mark.operation.loops == operation.loops), None)


def _around_a_while(operation: Operation, marks: list[_Mark]) -> list[_Mark]:
    """The test of a ``while`` is counted before it and at the end of its body: both marks, or none."""
    if not operation.regions or operation.regions[-1][0] != "scf.while":
        return []
    _, number, holder = operation.regions[-1]
    before = [mark for mark in marks if mark.operation.block == holder]
    after = [
        mark
        for mark in marks
        if any(name == "scf.while" and at == holder and one != number for name, one, at in mark.operation.regions)
    ]
    return [before[0], after[0]] if before and after else []


def _half(operation: Operation) -> frozenset[str] | None:
    """The two operations that one of them may be half of."""
    if operation.name != "tt.atomic_rmw":
        return None
    what = operation.text.partition("tt.atomic_rmw ")[2].partition(",")[0]
    return next((both for both in _HALVES if what in both), None)


def audit(kernel: str, traced: str, compiled: str, sources: Mapping[str, Rewritten]) -> Audit:
    """Hold a twin against itself.

    traced: its module as it was traced under ``marking``. compiled: the TTIR that machine code was made from.
    sources: what was rewritten, by the names of the files that the twins claim to come from.
    """
    trace = _Trace(traced, sources)
    problems = list(trace.problems)
    kept: set[tuple[Place, str]] = set()
    repeated: set[tuple[Place, str]] = set()
    for operation in operations(compiled):
        chain = operation.location.chain
        why = unknown(operation)
        if operation.name in KINDS and not is_of_the_ledger(operation, trace.ledger):
            key = (chain[0] if chain else ("", 0, 0), KINDS[operation.name])
            if key[0] in trace.repeats:
                repeated.add((trace.original(key[0]), key[1]))
                continue
            kept.add(key)
            if key not in trace.accesses:
                why = f"the compiler makes a {operation.name} of it, which is not counted"
            elif key not in trace.counted:
                why = f"{operation.name} is not counted"
            elif any(place[0] in sources and place not in trace.merged for place in chain[1:]):
                why = f"{operation.name} is not counted in one of the calls that lead to it"
        if why:
            problems.append(f"{trace.where(*chain)}: {why}")
    for place, kind in trace.counted:
        if (trace.original(place), kind) in repeated:
            if (place, kind) in kept:
                problems.append(f"{trace.where(place)}: counting makes another {kind} of it")
            kept.add((place, kind))
    dropped = (f"{trace.where(place)}: {kind}" for place, kind in trace.counted if (place, kind) not in kept)
    return Audit(
        kernel,
        traced=len(trace.counted),
        kept=len(kept & trace.counted.keys()),
        problems=_unique(problems),
        dropped=tuple(dropped),  # two places of one line are told twice
    )


def _repeats(file: str, source: str) -> Iterable[Place]:
    """The calls inside the arguments of the statements that count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(f"{MODULE}."):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                for one in ast.walk(argument):
                    if isinstance(one, ast.Call):
                        yield file, one.lineno, one.col_offset + 1


def _unique(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))


def traced_again(source: Any, options: Any, target: Any) -> str:
    """The module of a twin as it is traced, with marks; ``source`` is what Triton compiles."""
    backend = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    with marking():
        return str(source.make_ir(target, options, functions, backend.get_module_map(), context))
