"""Whose a directory is: each setting that differs is named, with both values; and files in it that are damaged."""

import json

import numpy as np
import pytest
import torch

from experiments.build import make_settings
from experiments.checkpoints import read_checkpoint, write_checkpoint
from experiments.config import composed
from experiments.ledger import spent
from experiments.run_directory import RunDirectory, RunError
from nas.compute import Compute


def identity(*words):
    settings = make_settings(composed("experiment=smoke", *words))
    return {"space": "encoder", "seed": settings.seed, "settings": settings.said()}


def test_settings_are_said_as_a_configuration_says_them():
    said = identity("searcher=regularised_evolution")["settings"]
    assert said["searcher.make_searcher"] == "nas.searchers.regularised_evolution.RegularisedEvolution"
    assert said["searcher.make_searcher.tournament"] == 0.25
    assert (said["init.train.steps"], said["finish.lesson.beta"], said["budget_ms"]) == (20, [0.5, 0.0], None)
    assert json.loads(json.dumps(said)) == said
    assert not any("stages" in name for name in said), "they may come later"


def test_all_that_differs_is_named_and_nothing_changes(tmp_path):
    run = RunDirectory(tmp_path)
    run.claim(identity())
    run.claim(identity("stages=[longer]"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError) as raised:
        run.claim(identity("seed=3", "searcher=regularised_evolution", "searcher.evaluations=9", "darts.temperature=[1.0,0.5]"))
    said = str(raised.value)
    assert said.startswith(f"run: {tmp_path} was begun with seed 0, this run has 3; with ")
    assert "searcher.evaluations 8, this run has 9" in said
    assert "darts.temperature [1.0, 0.4], this run has [1.0, 0.5]" in said
    assert "searcher.make_searcher.tournament None, this run has 0.25" in said
    assert said.count("seed") == 1
    assert said.endswith("; name a new directory")
    assert "finish." not in said
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_directory_of_before_is_refused_in_words(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_json("run.json", {**identity(), "settings": "bffe95434818"})
    with pytest.raises(RunError, match="was begun by an earlier version of this program; name a new directory"):
        run.claim(identity())


def test_a_directory_that_was_deleted_is_not_made_again(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.rmdir()
    with (
        pytest.raises(RunError, match=r"run: .*run is not there any more; it was deleted or moved while this ran"),
        spent(run, "a"),
    ):
        pass
    assert not run.path.exists()


def one_bit_of_a_weight(content: bytes) -> bytes:
    at = content.index(np.float32(0.75).tobytes())
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda c: c[: len(c) // 2], lambda c: c[:-15], lambda c: bytes(len(c)), one_bit_of_a_weight]
)
def test_a_damaged_checkpoint_is_named_and_stays(tmp_path, damage):
    run = RunDirectory(tmp_path)
    write_checkpoint(run, "a.ckpt", {"weights": torch.full((100,), 0.75)})
    assert read_checkpoint(run, "a.ckpt", Compute())["weights"].tolist() == [0.75] * 100
    damaged = damage((run / "a.ckpt").read_bytes())
    (run / "a.ckpt").write_bytes(damaged)
    with pytest.raises(RunError, match=r"a\.ckpt: is damaged; delete it to do this part again \("):
        read_checkpoint(run, "a.ckpt", Compute())
    assert (run / "a.ckpt").read_bytes() == damaged
