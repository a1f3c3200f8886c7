"""Takes the worker's place: behaves as the first argument says, and notes in the second's folder what it was given.

Importing it does nothing, because the test runner imports every file of the tests.
"""

import json
import os
import pathlib
import sys
import time


def say(event, **values):
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def hello(protocol=1):
    say("hello", protocol=protocol, version="0.0", python="3.99", pid=os.getpid())


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def result(request):
    """Pretend: every output that was asked for is an empty file."""
    outputs = {}
    if "out" in request["params"]:
        out = pathlib.Path(request["params"]["out"])
        outputs = {"predictions": str(out.with_suffix(".nc")), "layers": str(out)}
        for path in outputs.values():
            pathlib.Path(path).touch()
    say("result", outputs=outputs, counts={"ok": 3, "failed": 1}, facts={"torch": "9.9"}, message="done")


def sleep_through_everything():
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("progress", stage="predict", done=1, total=10, message="")
    time.sleep(600)


def wait_for_cancel(request):
    for done in range(1000):
        say("progress", stage="predict", done=done, total=1000, message="")
        if sys.stdin.readline().strip() in ("cancel", ""):
            say("cancelled", done=done, total=1000, outputs={})
            return


BEHAVIOURS = {
    "good": lambda request: (hello(), result(request)),
    "quick": lambda request: (hello(), say("progress", stage="<b>", done=1, total=2, message="<b>"), result(request)),
    "garbage": lambda request: (hello(), write("Welcome to <b>conda</b>!\n"), time.sleep(600)),
    "no_hello": lambda request: write('{"event": "progress"}\n'),
    "half_line": lambda request: (hello(), write('{"event": "resu')),
    "silent": lambda request: hello(),
    "mute": lambda request: None,
    "unknown": lambda request: (hello(), [say("gossip", about=i) for i in range(5)], result(request)),
    "deaf": lambda request: (hello(), sleep_through_everything()),
    "polite": lambda request: (hello(), wait_for_cancel(request)),
    "newer": lambda request: hello(7),
    "older": lambda request: (hello(0), result(request)),
    "crash": lambda request: (hello(), os.abort()),
    "killed": lambda request: (hello(), os.kill(os.getpid(), 9)),
    "endless_line": lambda request: (hello(), write("x" * 3_000_000), time.sleep(600)),
    "lingering": lambda request: (hello(), result(request), time.sleep(600)),
    "error": lambda request: (
        hello(),
        say("error", code="oom", message="out of memory: <img src=x>", hint="", detail="Traceback ..."),
        sys.exit(1),
    ),
    "noisy": lambda request: (hello(), os.write(2, b"warn\xff\xfe <script>\n" * 2000), result(request)),
}


def main():
    behaviour, folder, *arguments = sys.argv[1:]
    line = sys.stdin.readline()
    with (pathlib.Path(folder) / "asked.jsonl").open("a", encoding="utf-8") as file:
        known = {"arguments": arguments, "environment": dict(os.environ), "pid": os.getpid()}
        file.write(json.dumps({**known, "request": json.loads(line)}) + "\n")
    BEHAVIOURS[behaviour](json.loads(line))


if __name__ == "__main__":
    main()
