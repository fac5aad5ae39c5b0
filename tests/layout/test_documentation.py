"""The documentation's code runs, its commands exist, its links lead somewhere."""

import json
import os
import re
import subprocess
import sys

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import QueueState
from roofline_policies.policies import SloGuard, Static
from roofline_policies.settings.loading import load
from roofline_policies.testing import fake_bounds
from tests import ROOT
from tests.roofline_policies.views import view

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(code):
    namespace = {"__name__": "example"}
    exec(compile(code, "example", "exec"), namespace)
    return namespace


def test_readmes_policy_is_ten_lines_and_works():
    code, _ = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line]) <= 10
    policy = run(code)["QuietNights"]()
    (proposal,) = policy.propose(view(queue=QueueState(running=3)))
    assert (proposal.knob, proposal.value) == (Knob.PREFILL_CHUNK_TOKENS, 512)
    assert policy.propose(view(queue=QueueState(waiting=1))) == ()


def interpreted(folder, name, code):
    """What a program prints under Triton's interpreter, its folder left out."""
    (folder / name).write_text(code)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(f"{folder}{os.sep}", "")


def test_the_page_on_counting_prints_what_it_says(tmp_path):
    page = ROOT / "docs" / "count-a-kernel.md"
    assert interpreted(tmp_path, "count_add.py", "".join(blocks(page, "python"))) == "".join(blocks(page, "text"))


def test_readmes_kernel_counts(tmp_path):
    definition = blocks(ROOT / "docs" / "count-a-kernel.md", "python")[0].partition("add = counted(add)")[0]
    _, code = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line]) == 5
    assert interpreted(tmp_path, "readme.py", definition + code) == code.rpartition("# ")[2]


def test_architecture_names_every_module_of_counting():
    table = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "roofline_policies" / "counting").rglob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in table} == set()


def test_architecture_names_every_hook_and_no_other():
    sources = "".join(path.read_text() for path in (ROOT / "sglang_patches").rglob("*.py"))
    hooked = set(re.findall(r'\bHook\(\s*f"\{\w+\}\.(\w+)"', sources))
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("| where in SGLang |")[2].partition("\n\n")[0]
    named = {
        name.rpartition(".")[2]
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([\w.]+)`", row.split("|")[1])
    }
    assert "run_batch" in named
    assert named == hooked
    assert sources.count("Hook(f") + len(re.findall(r"\bHook\(\n", sources)) == len(hooked)


def test_the_commands_of_readme_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "".join(page.read_text() for page in PAGES)))
    assert {"demo", "test"} <= named <= targets
    assert "make lint test" in (ROOT / ".ci" / "run").read_text()


def test_overrides_of_the_policy_load():
    named = {words for page in PAGES for words in re.findall(r'--policy-set "([^"]+)"', page.read_text())}
    assert "policy.policies.2.relegate_for_s=0" in named
    for words in named:
        load("adaptive", overrides=words.split())


def test_readme_says_for_how_long_a_prompt_may_be_passed_over():
    (guard,) = [part for part in load("adaptive").policy.policies if isinstance(part, SloGuard)]
    assert f"by default for up to {guard.relegate_for_s} s after its arrival" in (ROOT / "README.md").read_text()
    off = load("adaptive", overrides=["policy.policies.2.relegate_for_s=0"]).policy.policies
    assert [part.relegate_for_s for part in off if isinstance(part, SloGuard)] == [0]


def test_readme_turns_the_policy_off_whatever_was_overridden_at_launch():
    (body,) = re.findall(r"/roofline/policy -d '(.*?)'", (ROOT / "README.md").read_text())
    asked = json.loads(body)
    assert asked.keys() == {"policy", "set"}
    assert load(asked["policy"], overrides=asked["set"].split()).policy == Static()


def test_readme_has_a_row_for_every_knob_that_a_server_can_move():
    rows = set(re.findall(r"^\| `(\w+)`: ", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert rows == {knob.value for knob in Knob if fake_bounds().movable(knob)}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_modules_that_are_run_exist():
    for page in PAGES:
        for module in re.findall(r"python -m ((?:bench|roofline_policies)[.\w]+)", page.read_text()):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page.name}: {module}"


def anchors(page):
    """The addresses of a page's headings, as GitHub makes them: lower case, no punctuation, spaces as dashes."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_named_files_exist():
    for page in PAGES:
        text = page.read_text()
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # code has brackets of its own
        for target, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", prose):
            to = page.parent / target if target else page
            assert to.exists(), f"{page.name}: {target}"
            assert not heading or heading in anchors(to), f"{page.name}: {target}#{heading}"
        for path in re.findall(r"`((?:roofline_policies|sglang_patches|bench|conf|docs|tests)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
