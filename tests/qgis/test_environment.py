"""Which Python is found, and what it is started with."""

import os
import sys
from pathlib import Path

import pytest
from mvmf_locator import diagnostics, environment
from mvmf_locator.environment import clean_environment, find_python, interpreter_of


def program(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No Python of the machine that runs the test is found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr(environment, "_PROGRAM_FOLDERS", ("~/.local/bin",))
    return tmp_path / "home"


def test_the_documented_order(tmp_path, home):
    places = {
        "setting": program(tmp_path / "a/bin/python3"),
        "variable": program(tmp_path / "b/bin/python3"),
        "command": program(tmp_path / "c/bin/python3"),
        "home": program(home / "geo-mvmf/bin/python3"),
    }
    program(tmp_path / "c/bin/geo-mvmf", f"#!{places['command']}\n")
    environ = {"PATH": str(tmp_path / "c/bin"), "GEO_MVMF_PYTHON": str(tmp_path / "b")}
    assert find_python(str(tmp_path / "a"), environ).python == str(places["setting"])
    assert find_python("", environ).python == str(places["variable"])
    assert find_python("", {"PATH": environ["PATH"]}).python == str(places["command"])
    assert find_python("", {}).python == str(places["home"])
    places["home"].unlink()
    found = find_python("", {})
    assert found.python == ""
    assert environment.RECIPE in found.problem


def test_whoever_names_a_python_is_not_overruled(tmp_path, home):
    program(home / "geo-mvmf/bin/python3")
    for setting, environ in (("/no/such", {}), ("", {"GEO_MVMF_PYTHON": "/no/such"})):
        found = find_python(setting, environ)
        assert found.python == ""
        assert "'/no/such'" in found.problem


def test_an_environment_s_link_stays_a_link(tmp_path):
    real = program(tmp_path / "usr/bin/python3.12")
    link = tmp_path / "venv/bin/python3"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert interpreter_of(str(tmp_path / "venv")) == str(link)
    script = program(tmp_path / "venv/bin/geo-mvmf", f"#!{link}\n")
    shown = tmp_path / "home/.local/bin/geo-mvmf"
    shown.parent.mkdir(parents=True)
    shown.symlink_to(script)
    assert find_python("", {}).python == str(link)


@pytest.mark.parametrize(
    "head",
    [
        "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_long_and_spaced_paths_stand_behind_sh(tmp_path, head):
    python = program(tmp_path / "with space/bin/python3")
    script = program(tmp_path / "elsewhere/geo-mvmf", head.format(python=python))
    assert interpreter_of(str(script)) == str(python)


def test_programs_of_windows(tmp_path):
    python = program(tmp_path / "env/Scripts/python.exe")
    (tmp_path / "env/pyvenv.cfg").touch()
    program(tmp_path / "env/Scripts/pythonw.exe")
    script = program(tmp_path / "env/Scripts/geo-mvmf.exe", "MZ")
    assert interpreter_of(str(tmp_path / "env")) == str(python)
    assert interpreter_of(str(tmp_path / "env/Scripts/pythonw.exe")) == str(python)
    assert interpreter_of(str(script)) == str(python)


def test_on_windows_the_python_beside_uv_s_programs_is_another_one(home):
    program(home / ".local/bin/python.exe")  # uv's default
    shown = program(home / ".local/bin/geo-mvmf.exe", "MZ")
    assert interpreter_of(str(shown)) == ""
    python = program(home / "AppData/Roaming/uv/tools/geo-mvmf/Scripts/python.exe")
    assert find_python("", {}).python == str(python)


def test_a_command_in_the_current_folder_is_not_taken(tmp_path, monkeypatch, home):
    python = program(tmp_path / "c/bin/python3")
    program(tmp_path / "here/geo-mvmf", f"#!{python}\n")
    monkeypatch.chdir(tmp_path / "here")
    assert find_python("", {"PATH": os.pathsep.join(["", ".", "../here"])}).python == ""
    # the twin: PATH with its absolute name
    assert find_python("", {"PATH": str(tmp_path / "here")}).python == str(python)


def test_what_is_no_python(tmp_path):
    program(tmp_path / "geo-mvmf", "#!/usr/bin/env python3\n")  # could be any
    program(tmp_path / "rm")
    (tmp_path / "python3").write_text("not a program")
    for name in ("geo-mvmf", "rm", "python3", "missing", ""):
        assert interpreter_of(str(tmp_path / name / "x") if name == "" else str(tmp_path / name)) == ""


POISON = {
    "PYTHONHOME": "/no",
    "PYTHONPATH": "/no",
    "PYTHONEXECUTABLE": "/usr/bin/python3",
    "__PYVENV_LAUNCHER__": "/no",
    "VIRTUAL_ENV": "/no",
    "CONDA_PREFIX": "/no",
    "PROJ_LIB": "/no",
    "PROJ_DATA": "/no",
    "GDAL_DATA": "/no",
    "GDAL_DRIVER_PATH": "/no",
    "QT_PLUGIN_PATH": "/no",
    "QGIS_PREFIX_PATH": "/usr",
    "LD_LIBRARY_PATH": "/no",
    "LD_PRELOAD": "",
    "DYLD_LIBRARY_PATH": "/no",
    "SSL_CERT_FILE": "/no/such/file",
    "pythonhome": "/no",
}


def test_nothing_of_qgis_reaches_the_child():
    kept = clean_environment({**POISON, "HOME": "/h", "HTTPS_PROXY": "p", "PATH": "/usr/bin"}, "/env/bin/python3")
    assert kept == {"HOME": "/h", "HTTPS_PROXY": "p", "PATH": os.pathsep.join(["/env/bin", "/usr/bin"])}


def test_the_chosen_conda_environment_is_kept():
    kept = clean_environment({"CONDA_PREFIX": "/env", "CONDA_EXE": "/c"}, "/env/bin/python3")
    assert kept["CONDA_PREFIX"] == "/env"
    assert "CONDA_PREFIX" not in clean_environment({"CONDA_PREFIX": "/other"}, "/env/bin/python3")


def test_certificates_that_are_there_are_kept_unless_they_are_qgis_s(tmp_path):
    file = program(tmp_path / "qgis/cert.pem")
    environ = {"SSL_CERT_FILE": str(file)}
    assert "SSL_CERT_FILE" in clean_environment(environ, "/env/bin/python3", foreign=[str(tmp_path / "qg")])
    assert "SSL_CERT_FILE" not in clean_environment(environ, "/env/bin/python3", foreign=[str(tmp_path / "qgis")])


def test_on_windows_path_loses_qgis_and_begins_with_the_environment():
    path = os.pathsep.join(["/OSGeo4W/bin", "/Windows/system32"])
    kept = clean_environment({"Path": path}, "/env/Scripts/python.exe", foreign=["/OSGeo4W"], windows=True)
    assert kept["Path"].split(os.pathsep) == ["/env", "/env/Library/bin", "/env/Scripts", "/Windows/system32"]


def test_flatpak_is_said(tmp_path):
    (tmp_path / ".flatpak-info").touch()
    assert "Flatpak" in environment.sandbox_problem(str(tmp_path / ".flatpak-info"))
    assert environment.sandbox_problem(str(tmp_path / "no")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "/home/maria/photos/a.jpg",
        "C:\\Users\\Maria Lopez\\photos",
        "c:/users/maria/x",
        "/Users/maria/Library",
        "\\\\server\\home\\maria\\x",
        '{"a": "/home/maria"}',
        "/srv/people/maria/x",
        "/SRV/people/maria",
    ],
)
def test_no_home_folder_is_in_diagnostics(text):
    page = diagnostics.markdown({"found": f"python at {text}, ok", "list": [text]}, home="/srv/people/maria")
    assert "maria" not in page.lower()
    assert "~" in page
    assert "ok" in page


def test_other_paths_stay():
    assert diagnostics.redacted("/opt/env/bin/python3 /srv/people/marianne", home="/srv/people/maria").endswith(
        "marianne"
    )
    assert diagnostics.redacted("/opt/env", home="/") == "/opt/env"


def test_a_value_cannot_leave_its_block():
    page = diagnostics.markdown({"qgis": "3.22\n```\n<img src=x>", "b": ["x", "y"]}, home="/h")
    assert page.count("```") == 2
    assert "b: x, y" in page


def test_the_recipe_is_the_one_of_the_docs():
    assert environment.RECIPE in (Path(__file__).parents[2] / "docs" / "qgis.md").read_text(encoding="utf-8")
    about = Path(environment.__file__).with_name("metadata.txt").read_text(encoding="utf-8")
    assert environment.RECIPE in about
    assert sys.version_info >= (3, 11)
