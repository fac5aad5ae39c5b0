"""The commands of the counting package: explain and bench, what they print, and how they refuse."""

import importlib
import importlib.util
import json
import subprocess
import sys
import textwrap

import pytest
from triton import knobs

from roofline_policies.counting.__main__ import main
from roofline_policies.counting.triton_versions import HAS_BLOCK_POINTERS
from roofline_policies.errors import EXIT_BAD_INPUT

COMMAND = [sys.executable, "-m", "roofline_policies.counting"]

MODULE = """
    from types import SimpleNamespace

    import torch
    import triton
    import triton.language as tl

    print("a word of the package's own")


    @triton.jit
    def halve(value):
        return value / 2


    @triton.jit
    def fetch(x, at, n):
        return halve(tl.load(x + at, mask=at < n))


    @triton.jit
    def total(x, out, n, BLOCK: tl.constexpr):
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n, BLOCK):
            sums += fetch(x, start + tl.arange(0, BLOCK), n)
        tl.atomic_add(out, tl.sum(sums))


    tuned = triton.autotune([triton.Config({"BLOCK": 256})], key=["n"])(total)


    @triton.jit
    def flush_cache(x):
        tl.inline_asm_elementwise("ld.global.cv.u32 $0, [$1];", "=r,l", [x], dtype=tl.int32, is_pure=False, pack=1)


    @triton.jit
    def nothing(x):
        pass


    def unseen(value):
        return value


    @triton.jit
    def refused(x):
        tl.store(x, unseen(tl.load(x)))


    @triton.jit
    def undefined(x):
        tl.store(x, no_such_thing)


    class Kernels:
        inner = total


    X = torch.empty(4096, device="meta")
    NUMBER = 3
    CASES = (
        SimpleNamespace(name="sums", launch=lambda: total[(1,)](X, X, 1000, BLOCK=256)),
        SimpleNamespace(name="sums, tuned", launch=lambda: tuned[(1,)](X, X, 1000)),
    )
    BAD_CASES = (
        SimpleNamespace(name="launches nothing", launch=lambda: None),
        SimpleNamespace(name="does not compile", launch=lambda: undefined[(1,)](X)),
        SimpleNamespace(name="is refused", launch=lambda: refused[(1,)](X)),
    )
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one module of kernels and cases."""
    folder = tmp_path / "command_example"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "kernels.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder.name
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def last_line(text):
    return json.loads(text.splitlines()[-1])


@pytest.mark.parametrize("kernel", ["total", "tuned", "Kernels.inner"])
def test_explain_prints_the_sites_the_verdict_and_the_new_source(package, capsys, kernel):
    assert main(["explain", f"{package}.kernels:{kernel}"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "tl.load(x + at, mask=at < n)" in line)
    line = textwrap.dedent(MODULE).splitlines().index("    return halve(tl.load(x + at, mask=at < n))") + 1
    assert f"{package}/kernels.py:{line}" in row
    assert row.startswith("| load ")
    assert f"{package}.kernels:{kernel} is exact: all 2 sites are counted" in shown
    assert "def total(x, out, n, BLOCK: tl.constexpr" in shown
    assert "def fetch(x, at, n" in shown
    assert "def halve" not in shown
    assert "a word of the package's own" not in shown


def test_explain_as_json_is_one_line(package, capsys):
    assert main(["explain", f"{package}.kernels:total", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["kernel"], told["exact"], told["module"]) == (f"{package}.kernels:total", True, "imported")
    assert {site["kind"] for site in told["sites"]} == {"load", "atomic"}
    assert all(site["cost"] in {"constant", "affine", "reduction"} and site["line"] for site in told["sites"])
    own, helper = told["sources"].values()
    assert own.startswith("def total(")
    assert helper.startswith("def fetch(")


def test_a_kernel_that_is_not_exact_is_called_so(package, capsys):
    assert main(["explain", f"{package}.kernels:flush_cache"]) == 0
    shown = capsys.readouterr().out
    assert "is not exact: 1 of 1 sites not counted, its counts are lower bounds" in shown
    assert main(["explain", f"{package}.kernels:nothing"]) == 0
    assert "is exact: it moves no bytes and multiplies no matrices" in capsys.readouterr().out


def test_what_counts_already_is_explained_as_it_was(package, capsys):
    module = importlib.import_module(f"{package}.kernels")
    from roofline_policies.counting import counted

    module.counting = counted(module.total)
    assert main(["explain", f"{package}.kernels:counting"]) == 0
    assert "all 2 sites are counted" in capsys.readouterr().out


def test_a_module_that_needs_what_is_not_there_is_explained_with_stand_ins(package, tmp_path, capsys):
    text = "import no_such_package.of_mine\nfrom command_example.kernels import total\n"
    (tmp_path / package / "needy.py").write_text(text)
    assert main(["explain", f"{package}.needy:total"]) == 0
    assert "was imported with stand-ins for no_such_package" in capsys.readouterr().out


def test_explain_surveys_a_package(package, capsys):
    assert main(["explain", package]) == 0
    shown = capsys.readouterr().out
    told = last_line(shown)
    assert told["kernels"] == {"definitions": 7, "obtained": 7, "rewritten": 6, "exact": 5, "not seen": 0}
    short = {one["kernel"].partition(":")[2]: one["why"] for one in told["not exact or not rewritten"]}
    assert short["flush_cache"] == "not exact: assembly not counted"
    assert short["refused"].startswith("Uncountable: ")
    assert "call of unseen" in short["refused"]
    assert "not exact or not rewritten" in shown
    assert main(["explain", package, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == told


def test_bench_compares_machine_code(package, capsys):
    assert main(["bench", f"{package}.kernels:CASES", "--only", "tuned"]) == 0
    printed = capsys.readouterr()
    told = last_line(printed.out)
    (row,) = told["kernels"]
    assert (told["target"], told["problems"], row["kernel"]) == ("sm_90", {}, "sums, tuned: total")
    assert row["same_without_ledger"] is True
    assert all(len(row[column]) == 2 for column in ("registers", "barriers", "main_loop_instructions", "main_loops"))
    assert "sums, tuned: total" in printed.out
    assert "the machine code of the original in 1 of 1 launches" in printed.out
    assert "1/1" in printed.err


def test_bench_shows_what_the_registers_of_the_original_give_where_blocks_are_lost(package, capsys, monkeypatch):
    from roofline_policies.counting.compiled import cost

    read = cost.read

    def fewer_blocks(counting, **options):
        code = read(counting, **options)
        return cost.replace(code, resident_blocks=code.resident_blocks - 1)

    monkeypatch.setattr(cost, "read", fewer_blocks)  # of the counting form alone
    assert main(["bench", f"{package}.kernels:CASES", "--json"]) == 0
    rows = last_line(capsys.readouterr().out)["kernels"]
    registers = rows[0]["registers"][0]
    names = ["sums: total", f"sums: total, maxnreg={registers}"]
    assert [row["kernel"] for row in rows[:2]] == names
    assert rows[1]["registers"][1] <= registers
    assert "same_without_ledger" not in rows[1]


def test_bench_names_what_it_could_not_compile_and_says_so_in_its_exit_code(package, capsys):
    assert main(["bench", f"{package}.kernels:BAD_CASES"]) == 1
    printed = capsys.readouterr()
    problems = last_line(printed.out)["problems"]
    assert "launched no Triton kernel" in problems["launches nothing"]
    assert "no_such_thing" in problems["does not compile: undefined"]
    assert "call of unseen" in problems["is refused: refused"]
    assert all(name in printed.err for name in problems)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "no_such_package_at_all"], "explain: 'no_such_package_at_all': no package"),
        (["explain", "no_such_package_at_all:x"], "No module named 'no_such_package_at_all'"),
        (["explain", "not a name"], "no such package"),
        (["explain", "not a name:x"], "no such module"),
        (["explain", ":"], "no such module"),
        (["explain", "command_example.kernels:missing"], "no such attribute; allowed: halve, fetch, total, tuned, "),
        (["explain", "command_example.kernels:"], "no such attribute"),
        (["explain", "command_example.kernels:total.missing"], "no such attribute"),
        (["explain", "command_example.kernels:NUMBER"], "3: int: is no function under triton.jit"),
        (["explain", "command_example.kernels:unseen"], "unseen: function: is no function under triton.jit"),
        (["explain", "command_example.kernels:refused"], "refused: call of unseen: "),
        (["explain", "command_example.broken:x"], "ValueError: broken on purpose"),
        (["bench", "no_such_package_at_all:CASES"], "bench: 'no_such_package_at_all': import failed"),
        (["bench", "command_example.broken:CASES"], "ValueError: broken on purpose"),
        (["bench", "command_example.kernels"], "no such attribute; allowed: a tuple of cases"),
        (["bench", "command_example.kernels:NUMBER"], "holds no cases; allowed: "),
        (["bench", "command_example.kernels:CASES", "--only", "xyz"], "allowed: sums, sums, tuned"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(package, tmp_path, capsys, arguments, told):
    (tmp_path / package / "broken.py").write_text("raise ValueError('broken on purpose\\nand more')\n")
    assert main(arguments) == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    problem = printed.err.splitlines()[-1]
    assert told in problem
    assert [line for line in printed.err.splitlines() if told in line] == [problem]


@pytest.mark.parametrize("arguments", [["bench"], ["explain", "sglang"]])
def test_what_needs_the_compiler_is_refused_under_the_interpreter(monkeypatch, capsys, arguments):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert main(arguments) == EXIT_BAD_INPUT
    (problem,) = capsys.readouterr().err.splitlines()
    assert "TRITON_INTERPRET is set; unset it" in problem


def test_the_command_says_how_it_is_used():
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "explain" in done.stdout
    assert "bench" in done.stdout
    wrong = subprocess.run([*COMMAND, "explain"], capture_output=True, text=True)
    assert wrong.returncode == EXIT_BAD_INPUT


@pytest.mark.slow
def test_nearly_all_kernels_of_sglang_are_rewritten(capsys):
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")
    done = subprocess.run([*COMMAND, "explain", "sglang", "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    with capsys.disabled():
        print("\n", told["kernels"], told["sites"])
        for one in told["not exact or not rewritten"]:
            print(f"{one['file']}:{one['line']}: {one['kernel'].partition(':')[2]}: {one['why']}")
    lack = [one for one in told["not exact or not rewritten"] if "boundary_check" in one["why"]]
    assert bool(lack) is not HAS_BLOCK_POINTERS  # a Triton without block pointers cannot compile these either
    obtained = told["kernels"]["obtained"] - len(lack)
    assert obtained >= 700
    assert told["kernels"]["rewritten"] >= 0.99 * obtained
    assert told["kernels"]["exact"] >= 0.98 * obtained
