"""`--help` of every command and benchmark: what it is for and what it takes, before anything heavy is imported."""

import re
import subprocess
import sys

import pytest

from experiments import cli
from experiments.bench import BENCHMARKS
from experiments.contract import MAX_DROP
from experiments.export import Words
from experiments.usage import described


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "search"])
def test_every_command(name, flag, capsys):
    assert cli.main([name, flag]) == 0
    assert f"`paretoformer {name}" in capsys.readouterr().out


def test_which_version_it_is(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"python \d+\.\d+\.\d+ paretoformer \S.*\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark(name, capsys):
    assert cli.main(["bench", name, "--help"]) == 0
    assert "\n  preset=" in capsys.readouterr().out


def test_what_help_says_is_what_a_search_allows():
    assert Words.max_drop == MAX_DROP


def test_words_with_their_defaults_and_comments():
    lines = described("experiments.export").splitlines()
    assert "  run=…            the directory of a finished run" in lines
    assert "  replace=false    a folder that is there and was changed" in lines
    assert any(line.startswith("  pick=knee        fast, balanced, knee") for line in lines)  # its comment is within brackets
    assert "  coverage=0.9  of the upper bound" in described("experiments.calibrate").splitlines()  # a field(default=…)
    assert (
        "  dims={}        dynamic dimensions by their names: dims={height:224}" in described("experiments.measure").splitlines()
    )


def test_nothing_heavy_is_imported():
    script = (
        "import sys; from experiments import cli; cli.main(['measure', 'x.onnx', '--help']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
