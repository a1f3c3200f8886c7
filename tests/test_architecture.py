"""The architecture itself: one direction of imports, one place for torch, documented names, banned calls."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import geo_mvmf

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "geo_mvmf"

# The one total order: a module may import only what stands before it. docs/architecture.md shows the same list.
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ORDER = re.findall(r"^- `([a-z0-9_.]+)`", TEXT, re.MULTILINE)

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(tree):
    """Names of this package's modules that a tree imports, lazily or at the top; not for type checking alone."""
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    return {
        found.removeprefix("geo_mvmf.")
        for found in imports(TREES[name])
        if found.startswith("geo_mvmf.") and found.removeprefix("geo_mvmf.") in FILES
    } - {name}


def test_the_order_names_every_module_once():
    assert sorted(ORDER) == sorted(FILES)
    assert len(set(ORDER)) == len(ORDER)


def test_no_module_imports_one_that_stands_behind_it():
    place = {name: i for i, name in enumerate(ORDER)}
    upward = [(name, other) for name in FILES for other in own_imports(name) if place[other] > place[name]]
    assert upward == []


def test_only_model_imports_torch():
    torch = ("torch", "torchvision")
    users = {name for name in FILES for found in imports(TREES[name]) if found.split(".")[0] in torch}
    assert users
    assert {name for name in users if not name.startswith("model.")} == set()


def test_exported_names_are_the_documented_ones():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^- `([A-Za-z_0-9]+)", text, re.MULTILINE))
    assert documented == set(geo_mvmf.__all__) - {"__version__"}
    for name in documented:
        assert getattr(geo_mvmf, name).__doc__


def test_importing_the_package_and_its_views_does_not_import_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import geo_mvmf, geo_mvmf.predictions, geo_mvmf.evaluation, geo_mvmf.report, geo_mvmf.cli\n"
        "from geo_mvmf import Grid, VmfMixture, open_predictions, read_image_table\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BANNED_MODULES = {"pickle", "marshal", "shelve", "urllib", "requests", "socket", "http"}
BANNED_CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen"}


def violations(tree, *, door=False):
    """What a file must not hold."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert"
        elif isinstance(node, ast.ExceptHandler) and not door:
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception"):
                yield node.lineno, f"except {caught}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS or (called == "print" and not door):
                yield node.lineno, called
            elif any(keyword.arg == "shell" for keyword in node.keywords):
                yield node.lineno, "shell"
            elif re.match(r"random\.|(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|Philox|PCG64)", called):
                yield node.lineno, called
    for found in imports(tree):
        if found.split(".")[0] in BANNED_MODULES:
            yield 0, f"import {found}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_banned_call(name):
    found = list(violations(TREES[name], door=name in ("cli", "worker")))
    if name == "model.backbones":  # names the errors of torchvision's loader, which runs only when asked for by name
        found = [each for each in found if each[1] != "import http.client"]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from urllib import request", "assert x", "eval('1')", "import torch\ntorch.load('a')",
     "subprocess.run('a', shell=True)", "np.random.seed(0)", "print(1)", "try:\n  f()\nexcept Exception:\n  pass"],
)  # fmt: skip
def test_each_ban_is_noticed(code):
    assert list(violations(ast.parse(code)))


def public_definitions(tree, prefix=""):
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{node.name}.")


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_public_name_is_documented(name):
    assert ast.get_docstring(TREES[name])
    assert [each for each, node in public_definitions(TREES[name]) if not ast.get_docstring(node)] == []


def test_readme_code_runs(tmp_path, monkeypatch):
    """Every Python block of the README, in order, in one namespace, beside the sample data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 (our own text)


def test_help_needs_neither_torch_nor_time():
    code = "import sys; sys.modules['torch'] = None; from geo_mvmf.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict" in done.stdout


def test_every_module_has_been_imported():
    for name in FILES:
        importlib.import_module(f"geo_mvmf.{name}")
