"""`paretoformer space`: what it prints is what the family counts."""

import numpy as np
import pytest

from experiments import space
from experiments.cli import main
from nas.encoding import Encoding
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.commands import refused

FAMILY = EncoderFamily(encoder_space(width=(8, 16), depth=(1, 2, 4), heads=(1, 2), ffn=(8, 16)), 50, 3, 24, head_size=8)
WORKLOAD = Workload(tokens=20)


def test_costs_are_the_network_s():
    archs = [FAMILY.space.sample(np.random.default_rng(seed)) for seed in range(4)]
    flops, parameters = space.costs(FAMILY, archs, WORKLOAD)
    counted = [sum(p.numel() for p in FAMILY.network(arch).parameters()) for arch in archs]
    assert parameters.tolist() == counted
    operators = FAMILY.operators(Encoding.of(FAMILY.space, archs), WORKLOAD)
    assert flops.tolist() == pytest.approx(sum(op.flops + np.zeros(4) for op in operators).tolist())


def test_choices_are_grouped_by_layer():
    assert space.choices(FAMILY.space)[1:] == [
        ["width", "8 16", ""],
        ["depth", "1 2 4", ""],
        ["layer1-4.attention", "full window none", "depth >= N"],
        ["layer1-4.heads", "1 2", "layerN.attention full or window"],
        ["layer1-4.ffn", "8 16", "depth >= N"],
    ]


def test_a_change_is_the_difference_of_two_networks():
    rows = {(name, option): (p, f) for name, option, p, f in space.changes(FAMILY, WORKLOAD)[1:]}
    assert len(rows) == 7  # one width, two depths, two kinds, one number of heads, one feed-forward: layers share a row
    largest = FAMILY.space.largest()
    narrow = FAMILY.space.canonical({**largest.as_dict, "width": 8})
    flops, parameters = space.costs(FAMILY, [largest, narrow], WORKLOAD)
    assert rows["width", "8"][0].startswith(f"{parameters[1] - parameters[0]:+,.0f} ")
    assert rows["width", "8"][1].startswith(f"{(flops[1] - flops[0]) / 1e6:+,.2f} ")


def test_an_option_is_taken_in_all_layers():
    shares = space.flops_of_options(FAMILY, WORKLOAD)
    assert list(shares) == ["width", "depth", "attention", "heads", "ffn"]
    largest = FAMILY.space.largest()
    none = FAMILY.space.canonical({**largest.as_dict, **{f"layer{n}.attention": "none" for n in (1, 2, 3, 4)}})
    flops, _ = space.costs(FAMILY, [largest, none], WORKLOAD)
    assert shares["attention"] == pytest.approx(
        {"full": 100, "window": shares["attention"]["window"], "none": 100 * flops[1] / flops[0]}
    )
    assert shares["depth"]["1"] < shares["depth"]["2"] < shares["depth"]["4"] == 100


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_command_draws(suffix, tmp_path, capsys):
    path = tmp_path / "new" / f"space.{suffix}"
    assert main(["space", "space=encoder_tiny", "tokens=32", f"picture={path}"]) == 0
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])
    assert f"Drawn: {path}" in capsys.readouterr().out
    again = path.read_bytes()
    main(["space", "space=encoder_tiny", "tokens=32", f"picture={path}"])
    assert path.read_bytes() == again


def test_other_pictures_are_refused():
    refused("space", "picture=space.txt", message="picture: space.txt does not end in one of ('.png', '.svg')")


def test_the_command_prints_the_tables(capsys):
    assert main(["space", "space=encoder_tiny", "tokens=32"]) == 0
    said = capsys.readouterr().out
    assert "encoder_tiny: 10^" in said
    assert all(word in said for word in ("layer1-3.ffn", "smallest", "1 layer", "MiB", "layer1-3.heads (each)"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("space=nope",), "Available options in 'space'"),
        (("space.widht=[32]",), "there is no value 'space.widht'; near it: space.width"),
        (("sace=encoder",), "'sace=encoder' is not one of space=…, task=…, batch=…, tokens=…"),
        (("task.vocab_size=100",), "task.vocab_size=100: needs task=…"),
        (("tokens=0",), "tokens: 0 is not at least 1"),
        (("space.width=[3,2]",), "width: options (3, 2) must be positive and ascending"),
    ],
)
def test_mistakes_are_one_line(words, message):
    refused("space", *words, message=message)
