"""The command `paretoformer`: one word, then what that command takes. Commands are imported when they are called."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from experiments.usage import HELP, described
from experiments.versions import versions

COMMANDS = {
    "search": ("experiments.search", "search a network for a task, a device and a budget"),
    "pareto": ("experiments.pareto", "show a finished run again: run=DIR"),
    "export": ("experiments.export", "export another network of a run: run=DIR pick=knee precision=int8"),
    "space": ("experiments.space", "show what a search space holds and costs: space=encoder"),
    "generate": ("experiments.generate", "go on with a text, by an exported decoder: export=DIR prompt=TEXT tokens=100"),
    "devices": ("experiments.devices", "list the devices: those that measure and those that were recorded"),
    "calibrate": ("experiments.calibrate", "fit a latency predictor to a device or to a table of measurements"),
    "measure": ("experiments.measure", "time ONNX files or a run's network: measure FILE.onnx device=local_cpu"),
    "bench": ("experiments.bench", "run a benchmark: bench supernet"),
}
HELP_THEMSELVES = ("search", "bench")
GOES_ON = {
    "experiments.calibrate": ("The same command with the same run=DIR goes on where it was.",)
}  # what one can do when stopped
FULL = (errno.ENOSPC, errno.EDQUOT)
USER_ERROR, STOPPED = 2, 130
STOPS = (signal.SIGTERM, signal.SIGHUP)  # of a scheduler, and of a terminal that is closed: what Ctrl-C is to a person


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 2 for the user's mistake or a lost device, 130 when stopped."""
    # Read by OpenMP when torch is imported: threads that wait spin for a moment and then sleep. Alone on the machine that costs
    # nothing, and beside other work a training step takes less time than with threads that spin for long, or not at all.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in HELP:
        print(usage())
        return 0 if words else USER_ERROR
    if words[0] == "--version":
        print(" ".join(f"{name} {number}" for name, number in versions(["paretoformer"]).items()))
        return 0
    if words[0] not in COMMANDS:
        return complain(f"{words[0]!r} is not one of {tuple(COMMANDS)}")
    module = COMMANDS[words[0]][0]
    if words[0] not in HELP_THEMSELVES and any(word in HELP for word in words):
        print(described(module))
        return 0
    return guarded(module, words[1:])


def guarded(module: str, words: Sequence[str]) -> int:
    """Calls `main(words)` of a module; errors that are not our own bugs become one line."""
    for number in STOPS:
        if signal.getsignal(number) is signal.SIG_DFL:  # below nohup it stays ignored
            signal.signal(number, signal.default_int_handler)
    try:
        result: int = importlib.import_module(module).main(list(words))
        return result
    except (KeyboardInterrupt, ValueError, RuntimeError, OSError) as error:
        if _was_stopped(error):
            print("\n" + " ".join(["Stopped.", *_notes(error), *GOES_ON.get(module, ())]), file=sys.stderr)
            return STOPPED
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or f"while writing; temporary files are in {tempfile.gettempdir()}, TMPDIR names another place"
            return complain(". ".join([f"no space left on the disk ({where}); what was written is whole", *_notes(error)]))
        if isinstance(error, OSError) and error.filename is not None:
            return complain(". ".join([f"{error.filename}: {error.strerror}", *_notes(error)]))
        if type(error) is RuntimeError:  # not one of ours: a bug
            raise
        return complain(str(error))


def _was_stopped(error: BaseException | None) -> bool:
    """Whether Ctrl-C, or one of the `STOPS`, is behind an error: a library that was interrupted may fail while it cleans up."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _notes(error: BaseException) -> list[str]:
    """What those who let an error pass wrote on it: how to go on."""
    return getattr(error, "__notes__", [])


def complain(text: str) -> int:
    """One line on stderr; the exit code of a user's mistake."""
    print("paretoformer: " + " ".join(text.split()), file=sys.stderr)
    return USER_ERROR


def usage() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: paretoformer COMMAND [NAME=VALUE …]",
            "",
            *lines,
            "",
            "paretoformer COMMAND --help says what a command takes, --version which one this is.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
