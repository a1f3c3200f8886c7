"""The demo, interrupted: one line and the exit code of the command line, whatever it was doing."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

DEMO = pathlib.Path(__file__).resolve().parents[2] / "sample_data" / "demo.py"
# a shell that started the tests in the background left Ctrl-C ignored
LISTENING = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
GUARDED = LISTENING + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
BARE = LISTENING + "import pathlib; runpy.run_path(sys.argv[1])['main'](pathlib.Path(sys.argv[2]))"


def interrupted(code, out, *, cutting):
    """Start the demo, and press Ctrl-C at its first line or once chips are being cut."""
    command = [sys.executable, "-c", code, str(DEMO), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "cutting 6000 chips" in process.stdout.readline()
        while cutting and not any(out.rglob("*.*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.hard
@pytest.mark.parametrize("cutting", [False, True])
def test_an_interrupted_demo_says_one_line_and_ends_with_130(tmp_path, cutting):
    code, said = interrupted(GUARDED, tmp_path, cutting=cutting)
    assert (code, said.count("\n")) == (130, 1), said
    assert said.startswith("interrupted; given again, the demo uses")


@pytest.mark.hard
def test_a_demo_that_shows_a_traceback_is_caught(tmp_path):
    """Broken twin: nothing catches the interruption."""
    code, said = interrupted(BARE, tmp_path, cutting=True)
    assert code != 130
    assert "Traceback" in said
