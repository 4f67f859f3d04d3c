"""Executables in the place of ssh, and a board's Python."""

import sys

PYTHON = f"env OMP_NUM_THREADS=1 {sys.executable}"
# What an ssh does once it is connected. The words after its own options are joined, and a shell runs them.
SSH = """#!/bin/sh
echo "$*" >> {log}
while [ "$1" != "--" ]; do shift; done
shift 2
{before}
exec sh -c "$*"
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)
