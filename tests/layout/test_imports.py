"""The rooms and who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module may import from its own layer and the layers above it in this list (earlier ones).
LAYERS = [
    {"errors", "work"},
    {"nvml", "roofline", "hardware", "calibrate"},
    {"batch", "model", "model_config"},
    {"decision", "view"},
    {"policies"},
    {"window", "transitions", "controller", "status", "fields", "targets", "config"},
]
LAYER_OF = {name: index for index, layer in enumerate(LAYERS) for name in layer}


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


def names(path):
    return {name.partition(".")[0] for name, _ in imports(path)}


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_the_library_knows_neither_the_server_nor_the_bench(path):
    assert names(path).isdisjoint({"sglang", "sgl_kernel", "sglang_patches", "bench", "triton"})


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_torch_is_for_the_calibration_alone_and_only_when_it_runs(path):
    uses = [at_top for name, at_top in imports(path) if name.partition(".")[0] == "torch"]
    assert not any(uses)
    assert not uses or path.stem == "calibrate"


@pytest.mark.parametrize("path", modules("roofline_policies/policies"), ids=lambda path: path.stem)
def test_policies_are_pure_python(path):
    allowed = {"__future__", "collections", "dataclasses", "enum", "math", "typing", "roofline_policies"}
    assert names(path) <= allowed


@pytest.mark.parametrize("path", modules("roofline_policies"), ids=lambda path: path.stem)
def test_layers_are_kept(path):
    here = path.relative_to(ROOT / "roofline_policies").parts[0].removesuffix(".py")
    if here == "__init__":
        return
    for name, _ in imports(path):
        package, _, module = name.partition(".")
        if package == "roofline_policies" and module.partition(".")[0] not in ("", "conf"):
            assert LAYER_OF[module.partition(".")[0]] <= LAYER_OF[here], f"{here} imports {module}"


@pytest.mark.parametrize("path", modules("bench"), ids=lambda path: path.stem)
def test_the_bench_talks_to_servers_not_to_their_insides(path):
    assert names(path).isdisjoint({"sglang", "sgl_kernel", "sglang_patches"})


@pytest.mark.parametrize(
    "path", [p for folder in ("roofline_policies", "sglang_patches", "bench", "tests") for p in modules(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
