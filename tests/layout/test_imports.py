"""The rooms and who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

from roofline_policies.counting.build import DIGESTED

ROOT = Path(__file__).parents[2]

# A module may import from its own layer and the layers above it in this list (earlier ones).
LAYERS = [
    {"errors", "plain", "work"},
    {"nvml", "roofline", "hardware", "calibrate", "calibration_file", "device_rates", "counting"} | {"plausible"},
    {"acceptance", "batch", "efficiency", "kernel_time", "model", "model_config", "predict", "step_times"}
    | {"model_gqa", "model_mla", "model_moe", "model_composed", "model_catalogue"}
    | {"composed_config", "composed_time", "step_costs", "tensor_parallel", "speculation"}
    | {"attention_kernels", "attention_tiles", "backends", "correction", "roofline_steps"},
    {"decision", "slo"},
    {"view"},
    {"policies"},
    {"window", "transitions", "controller", "status", "fields", "targets", "config", "overrides"}
    | {"fitted_steps", "host_time"}
    | {"admission", "deadlines", "output_lengths", "pace", "running_targets"},
    {"testing"},
]
LAYER_OF = {name: index for index, layer in enumerate(LAYERS) for name in layer}

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


def submodules(path, package):
    """The modules of a package that a file imports, by their names in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (alias.name for alias in node.names)
    yield from (name.removeprefix(f"{package}.") for name, _ in imports(path) if name.startswith(f"{package}."))


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
    assert not uses or path.stem in ("calibrate", "device_rates")


@pytest.mark.parametrize("path", modules("roofline_policies/policies"), ids=lambda path: path.stem)
def test_policies_are_pure_python(path):
    allowed = {"__future__", "collections", "dataclasses", "enum", "itertools", "math", "operator", "typing"}
    assert names(path) <= allowed | {"roofline_policies"}


@pytest.mark.parametrize("path", modules("bench/rivals"), ids=lambda path: path.stem)
def test_rivals_are_pure_python_and_stand_on_the_library_alone(path):
    allowed = {"__future__", "bisect", "collections", "dataclasses", "enum", "math", "typing", "roofline_policies"}
    assert names(path) <= allowed | {"bench"}
    assert all(name.startswith("bench.rivals") for name, _ in imports(path) if name.partition(".")[0] == "bench")


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_layers_are_kept(path):
    here = path.relative_to(ROOT / "roofline_policies").parts[0].removesuffix(".py")
    if here == "__init__":
        return
    for name, _ in imports(path):
        package, _, module = name.partition(".")
        if package == "roofline_policies" and module.partition(".")[0] not in ("", "conf"):
            assert LAYER_OF[module.partition(".")[0]] <= LAYER_OF[here], f"{here} imports {module}"


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
            path = ROOT / "roofline_policies" / "counting" / f"{name}.py"
            waiting += submodules(path, "roofline_policies.counting")
    assert {Path(module.__file__).stem for module in DIGESTED} == reached


@pytest.mark.parametrize("path", modules("bench"), ids=lambda path: path.stem)
def test_the_bench_talks_to_servers_not_to_their_insides(path):
    """But for bench/kernels, which launches SGLang's kernels as SGLang does, and for two modules that have the virtual
    server run."""
    own_kernels = path.is_relative_to(ROOT / "bench" / "kernels")
    virtual = path in (ROOT / "bench" / "virtual" / "run.py", ROOT / "bench" / "storm" / "virtual.py")
    patches = {name for name, _ in imports(path) if name.partition(".")[0] == "sglang_patches"}
    assert not patches or (virtual and all(name.startswith("sglang_patches.virtual.") for name in patches))
    assert "sgl_kernel" not in names(path)
    assert own_kernels or "sglang" not in names(path)


@pytest.mark.parametrize(
    "path", [p for folder in ("roofline_policies", "sglang_patches", "bench", "tests") for p in modules(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
