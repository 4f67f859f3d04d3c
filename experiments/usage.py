"""What `--help` says of a command: the docstring of its module and the words that it takes, read from the source, not run."""

from __future__ import annotations

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from experiments.formatting import aligned

HELP = ("-h", "--help")
SCHEMA = "Words"  # how the classes end that say which words a command takes
UNSAID = {"MISSING": "…", "None": "null", "True": "true", "False": "false"}


def described(module: str) -> str:
    """The text of a module's help: its docstring, and that of each class of words with a line for each of them."""
    return "\n".join([ast.get_docstring(ast.parse(_source(module))) or "", *_words(module, SCHEMA)])


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _words(module: str, ending: str) -> Iterator[str]:
    """Lines for the classes of a module whose names end so, wherever it has them from."""
    source = _source(module)
    comments = _comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if alias.name.endswith(ending):
                    yield from _words(node.module, alias.name)
        elif isinstance(node, ast.ClassDef) and node.name.endswith(ending):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
            yield from ("", f"{ast.get_docstring(node)} NAME=VALUE, with the defaults:")
            yield from aligned([[f"  {ast.unparse(f.target)}={_default(f.value)}", _beside(f, comments)] for f in fields])


def _default(value: ast.expr | None) -> str:
    """What a field is by default, as one would write it; an ellipsis for what must be given."""
    if isinstance(value, ast.Call):  # field(default=…) or field(default_factory=…)
        (keyword,) = value.keywords
        return ast.unparse(keyword.value) if keyword.arg == "default" else "{}"
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    said = ast.unparse(value) if value is not None else "MISSING"
    return UNSAID.get(said, said)


def _comments(source: str) -> dict[int, str]:
    """Comments by the number of their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _beside(field: ast.stmt, comments: dict[int, str]) -> str:
    return " ".join(comments[line] for line in range(field.lineno, (field.end_lineno or field.lineno) + 1) if line in comments)
