"""The rooms and who may import whom, read from the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from roofline_policies.counting.build import DIGESTED
from sglang_patches.needs.attributes import needed
from sglang_patches.needs.classes import CLASSES, OTHER_CLASSES
from tests import ROOT

# A room may import from the rooms of its own line and of the lines above it.
ROOMS = {
    "roofline_policies": [
        {"errors", "plain", "work"},
        {"fields", "device", "counting", "model"},
        {"slo", "steps"},
        {"contract"},
        {"policies"},
        {"control"},
        {"settings", "testing"},
    ],
    "sglang_patches": [
        {"needs"},
        {"cpu"},
        {"drafts", "observe", "requests"},
        {"server"},
        {"loop"},
        {"hooks"},
        {"launch", "virtual"},
        {"compat", "plugin"},
    ],
    "bench": [
        {
            "checks",
            "command",
            "composition",
            "demo_model",
            "demo_tokenizer",
            "drafted_model",
            "stored_weights",
            "tiny_models",
        },
        {"kernels", "rivals", "slo", "traffic"},
        {"gpu", "report"},
        {"fit", "live", "models"},
        {"virtual"},
        {"storm", "fairness", "sweep", "drafting"},
        {"silicon"},
    ],
}

# The same inside roofline_policies/counting: what kernels call while they are traced, what rewrites, what measures.
COUNTING_LAYERS = [
    {"pure", "sass", "scalars", "sites", "slots", "stand_ins", "triton_versions", "ttir"},
    {"callees", "definitions", "lanes", "ledger", "machine_code", "trace"},
    {"aggregates", "conditions", "effects", "masks", "structure", "twin", "wrappers"},
    {"binding", "census", "source", "traced"},
    {"audit", "count_sites", "counted_calls"},
    {"expressions", "helper_calls", "occupancy", "statements"},
    {"build", "rewrite"},
    {"kernel", "library"},
    {"cost", "explain"},
    {"__main__"},
]
COUNTING_LAYER_OF = {name: index for index, layer in enumerate(COUNTING_LAYERS) for name in layer}

MOST_MODULES = 15
"""Side by side in a folder."""


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """Dotted names a file imports, wherever in the file, and whether each is at module level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, id(node) in top


def imported(path, known):
    """The modules of ``known`` that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            yield from inside
            if node.module in known and len(inside) < len(node.names):
                yield node.module


def submodules(path, package):
    """The modules of a package that a file imports, by their own names, whatever room of it they are in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            rooms = ROOT.joinpath(*node.module.split("."))
            for alias in node.names if rooms.is_dir() else ():
                if (rooms / f"{alias.name}.py").is_file():
                    yield alias.name
            if rooms.with_suffix(".py").is_file():
                yield rooms.name


def counts(path):
    return path.is_relative_to(ROOT / "roofline_policies" / "counting")


def names(path):
    return {name.partition(".")[0] for name, _ in imports(path)}


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_the_library_knows_neither_the_server_nor_the_bench(path):
    assert names(path).isdisjoint({"sglang", "sgl_kernel", "sglang_patches", "bench"})
    assert counts(path) or "triton" not in names(path)


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_counting_is_a_leaf_of_the_library(path):
    """Whoever imports it imports torch and Triton."""
    assert counts(path) or "counting" not in submodules(path, "roofline_policies")
    assert counts(path) or not [*submodules(path, "roofline_policies.counting")]


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_torch_is_for_counting_and_for_the_calibration_when_it_runs(path):
    if counts(path):
        return
    uses = [at_top for name, at_top in imports(path) if name.partition(".")[0] == "torch"]
    assert not any(uses)
    assert not uses or path.stem in ("calibrate", "rates")


@pytest.mark.parametrize("path", modules("roofline_policies/policies"), ids=lambda path: path.stem)
def test_policies_are_pure_python(path):
    allowed = {"__future__", "bisect", "collections", "dataclasses", "enum", "itertools", "math", "operator", "typing"}
    assert names(path) <= allowed | {"roofline_policies"}


@pytest.mark.parametrize("path", modules("bench/rivals"), ids=lambda path: path.stem)
def test_rivals_are_pure_python_and_stand_on_the_library_alone(path):
    allowed = {"__future__", "bisect", "collections", "dataclasses", "enum", "math", "typing", "roofline_policies"}
    assert names(path) <= allowed | {"bench"}
    assert all(name.startswith("bench.rivals") for name, _ in imports(path) if name.partition(".")[0] == "bench")


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_place(package):
    rooms = {path.relative_to(ROOT / package).parts[0].removesuffix(".py") for path in modules(package)}
    assert rooms - {"__init__"} == set().union(*ROOMS[package])


@pytest.mark.parametrize(
    "path", [path for package in ROOMS for path in modules(package)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_rooms_import_from_those_above_them(path):
    package, here, *_ = path.relative_to(ROOT).with_suffix("").parts
    if here == "__init__":
        return
    line = {room: place for place, rooms in enumerate(ROOMS[package]) for room in rooms}
    for name, _ in imports(path):
        other, _, module = name.partition(".")
        if other == package and module.partition(".")[0] not in ("", "conf"):
            assert line[module.partition(".")[0]] <= line[here], f"{here} imports {module}"


@pytest.mark.parametrize("path", modules("roofline_policies/counting"), ids=lambda path: path.stem)
def test_layers_are_kept_inside_counting(path):
    if path.stem == "__init__":
        return
    for name in submodules(path, "roofline_policies.counting"):
        assert COUNTING_LAYER_OF[name] <= COUNTING_LAYER_OF[path.stem], f"{path.stem} imports {name}"


def test_the_digest_of_counting_covers_all_that_runs_while_a_kernel_is_traced():
    """``traced`` is what rewritten source calls, and that calls what it imports."""
    waiting, reached = ["traced"], set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            (path,) = (ROOT / "roofline_policies" / "counting").rglob(f"{name}.py")
            waiting += submodules(path, "roofline_policies.counting")
    assert {Path(module.__file__).stem for module in DIGESTED} == reached


def test_no_import_leads_back_to_where_it_came_from():
    """Neither between modules, those inside functions included, nor between rooms."""
    known = {}
    for package in ROOMS:
        for path in modules(package):
            known[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    modules_of = {name: {one for one in imported(path, known) if one != name} for name, path in known.items()}
    rooms_of = {}
    for name, others in modules_of.items():
        room = ".".join(name.split(".")[:2])
        rooms_of.setdefault(room, set()).update({".".join(one.split(".")[:2]) for one in others} - {room})
    for graph in (modules_of, rooms_of):
        tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


@pytest.mark.parametrize("path", modules("bench"), ids=lambda path: path.stem)
def test_the_bench_talks_to_servers_not_to_their_insides(path):
    """But for bench/kernels, which launches SGLang's kernels as SGLang does, for two modules that have the virtual
    server run, for two that read its clock, and for three that have models built."""
    own_kernels = path.is_relative_to(ROOT / "bench" / "kernels")
    virtual = path.relative_to(ROOT / "bench").as_posix() in (
        "virtual/run.py",
        "virtual/models.py",
        "storm/virtual.py",
        "models/builds.py",
        "silicon/journal.py",
        "silicon/models.py",
        "silicon/task.py",
    )
    patches = {name for name, _ in imports(path) if name.partition(".")[0] == "sglang_patches"}
    assert not patches or (virtual and all(name.startswith("sglang_patches.virtual.") for name in patches))
    assert "sgl_kernel" not in names(path)
    assert own_kernels or "sglang" not in names(path)


SGLANG_OBJECTS = {
    "adder", "admission", "batch", "chunked", "chunked_req", "engine", "manager", "model_config", "recv_req", "req",
    "reqs", "request", "requests", "result", "returned", "running_batch", "scheduler", "server_args", "stats",
    "target_worker", "tp_worker", "tree_cache", "waiting_queue", "worker",
}  # fmt: skip
"""What parameters are called that take an object of SGLang's."""


@pytest.mark.parametrize("path", modules("sglang_patches"), ids=lambda path: str(path.relative_to(ROOT)))
def test_one_file_names_the_attributes_of_sglangs_objects(path):
    """Elsewhere a parameter that takes one has a type that mypy looks into, and getattr is for our own attributes."""
    if path == ROOT / "sglang_patches" / "needs" / "objects.py":
        return
    names_needed = set().union(*(needed(kind) for kind in (*CLASSES, *OTHER_CLASSES)))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg) and node.arg in SGLANG_OBJECTS and node.annotation is not None:
            words = {part.id for part in ast.walk(node.annotation) if isinstance(part, ast.Name)}
            assert "Any" not in words, f"{path}:{node.lineno}: {node.arg}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            holder, name = node.args[:2]
            read = isinstance(holder, ast.Name) and holder.id in SGLANG_OBJECTS and isinstance(name, ast.Constant)
            assert not read or name.value in names_needed, f"{path}:{node.lineno}: {name.value}"


@pytest.mark.parametrize(
    "path", [p for folder in ("roofline_policies", "sglang_patches", "bench", "tests") for p in modules(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("package", ["roofline_policies", "sglang_patches", "bench"])
def test_a_folder_can_be_overlooked(package):
    crowded = {}
    for folder in {path.parent for path in modules(package)}:
        side_by_side = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
        if len(side_by_side) > MOST_MODULES:
            crowded[folder.name] = len(side_by_side)
    assert crowded == {}
