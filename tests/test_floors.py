"""The floors of the house: who may import whom, read from the source."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "nas": {"nas"},
    "search_spaces": {"nas", "search_spaces"},
    "hardware": {"nas", "hardware"},
    "latency_models": {"nas", "latency_models"},
    "experiments": {"nas", "search_spaces", "hardware", "latency_models", "experiments", "conf"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return [(line, name.split(".")[0]) for line, name in found]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    package = path.relative_to(ROOT).parts[0]
    ours = set(MAY_IMPORT) | {"conf", "tests"}
    tree = ast.parse(path.read_text())
    wrong = [(line, name) for line, name in imports(tree) if name in ours - MAY_IMPORT[package]]
    assert not wrong, f"{package} must not import {wrong}"
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
        inside = [(line, name) for line, name in imports(function) if name in ours]
        assert not inside, f"imports of our own packages inside {function.name}: {inside}"


def test_no_import_cycles():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    edges = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        checked = {n for block in ast.walk(tree) if _is_type_checking(block) for n in ast.walk(block)}
        edges[name] = {
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node not in checked
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if target in modules
        }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"an import cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_commands_start_without_what_only_fitting_needs():
    """`import scipy` alone imports none of its parts; those and sklearn take as long as a third of torch."""
    by_name = {ROOT / "latency_models" / name for name in ("ensemble.py", "hat_mlp.py")}  # imported by who asks for them
    for path in FILES:
        if path in by_name or "benchmarks" in path.parts:
            continue
        names = [
            name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        ]
        assert not [name for name in names if name.startswith(("scipy.", "sklearn"))], path


def test_every_file_is_installed():
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = [pattern.removesuffix("*") for pattern in installed["packages"]["find"]["include"]]
    assert set(packages) == {"conf", *MAY_IMPORT}
    data = installed["package-data"]["*"]
    files = [path for package in packages for path in (ROOT / package).rglob("*") if path.is_file()]
    assert len(files) > 200
    left_out = [path for path in files if path.suffix not in (".py", ".pyc") and not any(map(path.match, data))]
    assert not left_out, "pyproject.toml names no such data"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("package", [p for p in MAY_IMPORT if p != "experiments"])
def test_only_experiments_knows_hydra_or_prints(package):
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not {name for _, name in imports(tree)} & {"hydra", "omegaconf", "rich"}, path
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not calls, path
