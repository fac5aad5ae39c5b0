"""Triton's intermediate representation (TTIR) as text: its operations, where they stand, and where they come from.

Read from what Triton prints with locations; no more of MLIR's syntax than that needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

Place = tuple[str, int, int]
"""File, line and column of an expression, both counted from 1."""

ELEMENT_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
"""Bytes of an element type in memory; fp8 types begin with f8, pointers have eight."""


@dataclass(frozen=True)
class Location:
    """Where an operation comes from.

    chain: its place, then those of the calls that it was inlined through, innermost first; empty where unknown.
    name: the outermost name that was given to it, or "".
    """

    chain: tuple[Place, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Block:
    """A straight run of operations: a region, by number, and the label of one of its blocks."""

    region: int
    label: str


@dataclass(frozen=True)
class Operation:
    """One operation.

    text: as printed, without its location. function: the function it stands in. block: where; ``regions``: the
    operations around it with the blocks that hold them, outermost first.
    """

    name: str
    text: str
    location: Location
    function: str
    block: Block
    regions: tuple[tuple[str, int, Block], ...]

    @property
    def loops(self) -> tuple[int, ...]:
        """The loops around it, as numbers of their regions, outermost first."""
        return tuple(number for name, number, _ in self.regions if name in ("scf.for", "scf.while"))


_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$")
_AT_END = re.compile(r"\s*loc\((#loc\d*|unknown)\)$")
_OPERATION = re.compile(r'^(?:%[^=]*? = )?"?([a-z_]+\.[a-z_0-9.]+)"?')
_FUNCTION = re.compile(r'@("[^"]*"|[\w.$<>]+)')
_FILE = re.compile(r'^"((?:[^"\\]|\\.)*)":(\d+):(\d+)')
_NAMED = re.compile(r'^"((?:[^"\\]|\\.)*)"\((.*)\)$')
_CALL = re.compile(r"^callsite\((.*)\)$")
_FUSED = re.compile(r"^fused(?:<[^>]*>)?\[(.*)\]$")


class Locations:
    """The locations that a text names."""

    def __init__(self, text: str) -> None:
        found = (_ALIAS.match(line) for line in text.splitlines() if line.startswith("#loc"))
        self._aliases = {one[1]: one[2] for one in found if one}
        self._known: dict[str, Location] = {}

    def of(self, text: str) -> Location:
        """What a location reads as, by its alias or spelt out."""
        if text not in self._known:
            self._known[text] = self._read(self._aliases.get(text, text))
        return self._known[text]

    def _read(self, text: str) -> Location:
        if place := _FILE.match(text):
            return Location(((place[1], int(place[2]), int(place[3])),))
        if named := _NAMED.match(text):
            return Location(self.of(named[2]).chain, named[1])
        if call := _CALL.match(text):
            callee, caller = split(call[1], " at ")
            inner = self.of(callee)
            return Location(inner.chain + self.of(caller).chain, inner.name)
        if fused := _FUSED.match(text):
            return next((one for part in parts(fused[1]) if (one := self.of(part)).chain), Location())
        if text.startswith("#"):
            return self.of(text) if text in self._aliases else Location()
        return Location()


def split(text: str, separator: str) -> tuple[str, str]:
    """The two sides of a separator outside brackets and quotes."""
    depth, quoted = 0, False
    for at, letter in enumerate(text):
        quoted ^= letter == '"' and text[at - 1 : at] != "\\"
        depth += (letter in "([<") - (letter in ")]>") if not quoted else 0
        if not depth and not quoted and text.startswith(separator, at):
            return text[:at], text[at + len(separator) :]
    return text, ""


def parts(text: str) -> Iterator[str]:
    """What commas separate outside brackets and quotes."""
    while text:
        part, text = split(text, ", ")
        yield part


def operations(text: str) -> Iterator[Operation]:
    """The operations of a module, in the order they are printed.

    Of an operation with regions neither its location nor its end is looked at.
    """
    locations = Locations(text)
    function, label, count = "", "", 0
    regions: list[tuple[str, int, Block]] = []
    labels: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith(("#", "//")):
            continue
        if line.startswith("}"):
            name, _, holder = regions.pop()
            label = labels.pop()
            if line.endswith("{"):  # `} else {`, `} do {`
                count += 1
                regions.append((name, count, holder))
                labels.append(label)
                label = ""
            continue
        if line.startswith("^"):
            label = line[1:].partition("(")[0].partition(":")[0]
            continue
        found = _OPERATION.match(line)
        name = found[1] if found else line.partition(" ")[0]
        block = Block(regions[-1][1] if regions else 0, label)
        if name == "tt.func":
            symbol = _FUNCTION.search(line)
            function = symbol[1].strip('"') if symbol else ""
        end = _AT_END.search(line)
        if found and name != "tt.func":
            location = locations.of(end[1]) if end else Location()
            yield Operation(name, line[: end.start()] if end else line, location, function, block, tuple(regions))
        if line.endswith("{"):
            count += 1
            regions.append((name, count, block))
            labels.append(label)
            label = ""


_TENSOR = re.compile(r"^tensor<((?:\d+x)*)(.*)>$")


def shape_of(kind: str) -> tuple[tuple[int, ...], str]:
    """The shape and the element type of a type; of a scalar, the shape is ()."""
    tensor = _TENSOR.match(kind)
    if tensor is None:
        return (), kind
    return tuple(map(int, tensor[1].split("x")[:-1])), tensor[2]


_POINTER = re.compile(r"^!tt\.ptr<(.*?)(?:, \d+)?>$")
_DESCRIPTOR = re.compile(r"^!tt\.tensordesc<(?:tensor<)?((?:\d+x)*)([^>,]*)")


def accessed(kind: str) -> tuple[int, int] | None:
    """The lanes and bytes an element that an access through a pointer, block of pointers or descriptor moves."""
    if descriptor := _DESCRIPTOR.match(kind):
        shape = tuple(map(int, descriptor[1].split("x")[:-1]))
        return math.prod(shape), element_bytes(descriptor[2])
    shape, element = shape_of(kind)
    pointer = _POINTER.match(element)
    if pointer is None:
        return None
    inner, element = shape_of(pointer[1])
    return math.prod(shape or inner), element_bytes(element)


def element_bytes(element: str) -> int:
    """Bytes of an element type, 0 for one that is not known."""
    if element.startswith("!tt.ptr"):
        return 8
    return ELEMENT_BYTES.get(element.replace("si", "i").replace("ui", "i"), 1 if element.startswith("f8") else 0)
