"""The package as QGIS's plugin repository judges it, and the rules of the house that hold for it."""

import ast
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "qgis_plugin" / "mvmf_locator"
FILES = sorted(PLUGIN.rglob("*.py"))
FORBIDDEN = {"torch", "numpy", "pandas", "geopandas", "requests", "subprocess", "PyQt5", "PyQt6", "geo_mvmf", "pip"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def code_lines(text):
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    silent = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - skipped)


SCRIPT = ROOT / "qgis_plugin" / "package.py"
_spec = importlib.util.spec_from_file_location("package", SCRIPT)
packaging = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(packaging)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    first, second = (packaging.write(tmp_path_factory.mktemp("dist")) for _ in range(2))
    assert first.read_bytes() == second.read_bytes()
    return first


def test_only_the_standard_library_and_qgis_are_imported():
    for path in FILES:
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            top = name.split(".")[0]
            assert top == "qgis" or top in sys.stdlib_module_names, (path.name, name)
            assert top not in FORBIDDEN, (path.name, name)
            assert "processing" not in name, (path.name, name)


def test_pure_modules_import_no_qgis():
    for name in (
        "environment",
        "protocol",
        "diagnostics",
    ):  # what they say is translated by `texts`, which can do without
        found = set(imported(ast.parse((PLUGIN / f"{name}.py").read_text(encoding="utf-8"))))
        assert not any(each.startswith("qgis") for each in found), name


def test_every_public_name_is_documented():
    qgis_calls = re.compile(r"[a-z]+[A-Z]|^(id|name|icon|group|tags)$|^__")
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path.name
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                inner = node.name in ("work", "parameters", "give", "show")  # said once, in the base class
                assert ast.get_docstring(node) or qgis_calls.search(node.name) or inner, (path.name, node.name)


SAYING = {"WorkerFailed", "pushInfo", "pushWarning", "QgsProcessingException", "Found"}
WORDS = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")


def untranslated(tree):
    """Texts of several words that are said to users as they are written."""
    for node in ast.walk(tree):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        for said in node.args if name in SAYING else ():
            for part in said.values if isinstance(said, ast.JoinedStr) else [said]:
                if isinstance(part, ast.Constant) and WORDS.search(str(part.value)):
                    yield part.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_said_is_translated(path):
    assert list(untranslated(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_what_is_not_translated_is_noticed():
    tree = ast.parse('raise WorkerFailed(f"the {x} is missing here", tr("Look for it."))\nf.pushInfo("is not there")')
    assert list(untranslated(tree)) == [" is missing here", "is not there"]


def qt_names(tree):
    """Names of Qt that a module uses: (module, name), and the dotted ones (name, ...)."""
    homes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qgis.PyQt."):
            homes |= {each.name: node.module.rpartition(".")[2] for each in node.names}
    for node in ast.walk(tree):
        words = ast.unparse(node).split(".") if isinstance(node, (ast.Attribute, ast.Name)) else [""]
        if words[0] in homes and all(word.isidentifier() for word in words):
            yield (homes[words[0]], *words)


def missing_from_qt6(names):
    """Those that PyQt6 does not have under the same name."""
    for module, *words in sorted(set(names)):
        found = pytest.importorskip(f"PyQt6.{module}", reason="PyQt6 is not installed", exc_type=ImportError)
        for word in words:
            found = getattr(found, word, None)
        if found is None:
            yield ".".join([module, *words])


def test_every_name_of_qt_is_one_of_qt_6():
    names = [name for path in FILES for name in qt_names(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(set(names)) > 20
    assert list(missing_from_qt6(names)) == []


def test_a_name_that_qt_6_lost_is_noticed():
    flat = ast.parse("from qgis.PyQt.QtCore import QProcess, QRegExp\nQProcess.NotRunning, QRegExp('x')")
    assert list(missing_from_qt6(qt_names(flat))) == ["QtCore.QProcess.NotRunning", "QtCore.QRegExp"]


FLAT_ENUM = re.compile(
    r"\b(Qt|QProcess|QgsProcessing|QgsProcessingParameter\w+|QgsFileWidget|QgsWkbTypes|Qgis)\.(?:[A-Z][A-Za-z]+)\b(?!\.|\()"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_enums_are_scoped(path):
    text = path.read_text(encoding="utf-8")
    scoped = {"QgsProcessing.SourceType", "QgsProcessingParameterNumber.Type", "QgsProcessingParameterFile.Behavior"}
    assert [m.group() for m in FLAT_ENUM.finditer(text) if m.group() not in scoped] == []
    assert "exec_(" not in text


@pytest.mark.parametrize("line", ["Qt.PlainText", "QProcess.NotRunning)", "QgsProcessing.TypeRaster,"])
def test_a_flat_enum_is_noticed(line):
    assert FLAT_ENUM.search(line)


def test_it_stays_small():
    lines = {path.name: code_lines(path.read_text(encoding="utf-8")) for path in FILES}
    assert sum(lines.values()) < 1500, lines
    assert lines["runner.py"] + lines["protocol.py"] < 500
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) <= 400


def test_metadata_is_complete():
    general = packaging.metadata()
    needed = ("name", "description", "about", "version", "author", "email", "tracker", "repository", "homepage", "tags")
    assert all(general[name].strip() for name in (*needed, "changelog"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", general["version"])
    assert (general["qgisMinimumVersion"], general["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert general["hasProcessingProvider"] == "yes"
    assert (general["server"], general["experimental"], general["category"]) == ("False", "True", "Analysis")
    assert "supportsQt6" not in general
    assert "/" not in general["author"]
    assert (PLUGIN / general["icon"]).exists()
    from geo_mvmf import __version__

    assert general["version"] == __version__


def test_a_release_needs_real_addresses(tmp_path):
    """The same metadata with real ones has nothing to say; with those of today the release is refused."""
    general = dict(packaging.metadata())
    real = {name: general[name].replace("example.org", "geo-mvmf.net") for name in packaging.ADDRESSES}
    assert packaging.placeholders({**general, **real}) == []
    missing = packaging.placeholders(general)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "dist", "--release"], capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if missing else 0)
    assert all(name in done.stderr for name in missing)
    assert (tmp_path / "dist").exists() != bool(missing)


def test_the_zip_is_as_the_repository_wants_it(package):
    with zipfile.ZipFile(package) as file:
        names = file.namelist()
        modes = {entry.external_attr >> 16 for entry in file.infolist()}
        assert file.testzip() is None
        licence = file.read("mvmf_locator/LICENSE").decode()
    assert {name.split("/")[0] for name in names} == {"mvmf_locator"}
    assert {"mvmf_locator/__init__.py", "mvmf_locator/metadata.txt", "mvmf_locator/icon.svg"} <= set(names)
    assert {Path(name).suffix for name in names} <= {".py", ".txt", ".svg", ".qm", ""}
    assert not any("__pycache__" in name or ".." in name or Path(name).name.startswith(".") for name in names)
    assert modes == {0o644}
    assert "GNU GENERAL PUBLIC LICENSE" in licence
    assert package.stat().st_size < 200_000
    for path in FILES:
        assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n")


def tool(name):
    """Find a tool beside the interpreter or on PATH; CI must have it."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, but CI must have it: pip install -e .[dev]")
    return found or pytest.skip(f"{name} is not installed (pip install -e .[dev])")


def findings(folder):
    """What the three scanners of the plugin repository find, with every rule on."""

    def say(*command):
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout

    bandit = json.loads(say(tool("bandit"), "-r", ".", "-q", "-f", "json"))
    style = say(tool("flake8"), "--isolated", "--max-line-length=120", ".")
    secrets = json.loads(say(tool("detect-secrets"), "scan", "--all-files", "."))
    return [each["test_id"] for each in bandit["results"]], style.split(), list(secrets["results"])


@pytest.mark.hard
def test_scanners_find_nothing(package, tmp_path):
    with zipfile.ZipFile(package) as file:
        file.extractall(tmp_path)
    assert findings(tmp_path) == ([], [], [])


@pytest.mark.hard
def test_scanners_find_what_is_there(tmp_path):
    token = "".join(["AKIA", "IOSFODNN", "7EXAMPLE"])
    (tmp_path / "bad.py").write_text(
        f"import subprocess\nassert 1\nsubprocess.run(['a'])\nkey = '{token}'\nimport  os\n"
    )
    bandit, style, secrets = findings(tmp_path)
    assert {"B101", "B603", "B404"} <= set(bandit)
    assert style
    assert secrets
