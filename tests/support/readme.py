"""The README and docs/, their blocks of code and their command lines."""

import re
import shlex

from tests.support.commands import ROOT

TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
NAMED = {m.group(1): text for _, text in BLOCKS if (m := re.match(r"# (\S+\.(?:py|yaml))\n", text))}
COMMAND_LINES = [
    line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.strip()
]


def line_of(beginning: str) -> list[str]:
    """The words of the README's only command line that begins so."""
    [line] = [c for c in COMMAND_LINES if c.startswith(f"paretoformer {beginning}")]
    return shlex.split(line)[1:]
