"""Triton's epilogues: run in Triton's interpreter on a CPU, as they are on CUDA, and compiled for a device not here.

The interpreter must be asked for before Triton is imported, so the checks, interpreted_epilogues.py, have a process of
their own.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from geo_mvmf.errors import UsageError
from geo_mvmf.model import checkpoint, epilogue_choice, run_folder
from geo_mvmf.model.loss import cross_entropy_loss

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "geo_mvmf" / "model" / "triton_epilogues.py"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no package triton")


def run(environment, *arguments):
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--doctest-modules", "--import-mode=importlib"]
    options += ["--noconftest", "-W", "error", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment  # plugins take a second
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "interpreted_epilogues.py"), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@needs_triton
@pytest.mark.hard
def test_kernels_in_the_interpreter():
    run({"TRITON_INTERPRET": "1"}, "-k", "test_kernels or 12.0-partly")


@needs_triton
@pytest.mark.hard
def test_losses_and_broken_twins_in_the_interpreter():
    run({"TRITON_INTERPRET": "1"}, str(KERNELS))


@needs_triton
@pytest.mark.hard
def test_kernels_compile_for_a_device_that_is_not_here(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "error", str(HERE / "compiled_epilogues.py")], env=environment, check=True)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_cuda_device():
    run({"TRITON_INTERPRET": "0"})


@pytest.fixture
def anew(monkeypatch):
    """Nothing is known yet of what can work here."""
    monkeypatch.delenv(epilogue_choice.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(epilogue_choice, "chosen", epilogue_choice.chosen.__wrapped__)
    monkeypatch.setattr(epilogue_choice, "available", epilogue_choice.available.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_cuda_device_the_epilogues_are_eager(anew):
    assert epilogue_choice.current() == "eager"
    assert epilogue_choice.of(torch.device("cpu"), torch.float32).name == "eager"


def test_the_environment_decides_or_is_refused(anew, monkeypatch):
    monkeypatch.setenv(epilogue_choice.VARIABLE, "triton")
    with pytest.raises(UsageError, match=r"triton cannot work here, .*; use eager \(GEO_MVMF_EPILOGUES\)"):
        epilogue_choice.current()
    monkeypatch.setattr(epilogue_choice, "available", lambda: epilogue_choice.PROVIDERS)
    assert epilogue_choice.current() == "triton"
    monkeypatch.setenv(epilogue_choice.VARIABLE, "eager")
    assert epilogue_choice.current() == "eager"
    monkeypatch.setenv(epilogue_choice.VARIABLE, "cuda")
    with pytest.raises(UsageError, match=r"'cuda' \(GEO_MVMF_EPILOGUES\) is no provider of epilogues; use eager or t"):
        epilogue_choice.current()


@pytest.mark.parametrize(("capability", "package"), [((7, 5), True), ((9, 0), False)])
def test_old_devices_and_a_torch_without_triton_are_served_eagerly(anew, capability, package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if package else None)
    assert epilogue_choice.available() == ("eager",)


@pytest.mark.parametrize(
    ("facts", "provider"), [({"epilogues": "eager"}, "eager"), ({"epilogues": "cuda"}, None), ({}, None)]
)
def test_a_run_that_goes_on_works_as_it_began(facts, provider):
    assert run_folder.former("epilogues", checkpoint.Checkpoint(1, {}, facts)) == provider
    assert run_folder.former("epilogues", None) is None


def test_losses_on_a_cpu_do_not_import_triton(anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "geo_mvmf.model.triton_epilogues", None)
    x = torch.ones(1, 1, requires_grad=True)
    cross_entropy_loss(x, torch.ones(2, 1), torch.zeros(2), torch.tensor([0])).backward()
    with pytest.raises(ImportError):
        importlib.import_module("geo_mvmf.model.triton_epilogues")
