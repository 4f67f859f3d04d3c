"""Language models: windows that never mix splits, errors and bits that can be counted by hand, and texts that go on."""

import json
import math
import shutil
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from experiments import generate as generation
from experiments.cli import main
from experiments.contract import BrokenPromiseError, Limits, files_of
from experiments.finishing import Finisher
from experiments.generate import generate
from experiments.pipeline import Pipeline
from experiments.predict import Predictor, Refused, checksum_of, continued, draw
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings, Settings
from experiments.shipping import Shipment, Terms, ship
from experiments.tasks import django_source
from experiments.tasks.language_model import LanguageModel, PythonSource, TextFile, byte_tokenizer
from experiments.verdicts import Verdict
from hardware.local_cpu import LocalCpu
from latency_models.additive import AdditiveLatency
from nas.compute import Compute
from nas.export import export_onnx, form_of
from nas.finish.teaching import Lesson, teach
from nas.protocols import SPLITS, TaskWithMetrics
from nas.space import Architecture
from nas.training import TrainConfig
from nas.types import Workload
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.readme import line_of

TEXT = "".join(f"def name_{i}(x):\n    return {i} * x  # café\n\n" for i in range(400))
T = 16


@pytest.fixture(scope="module")
def task() -> LanguageModel:
    return LanguageModel("code", TEXT, max_tokens=T)


@pytest.fixture(scope="module")
def words() -> LanguageModel:
    return LanguageModel("code", TEXT, vocab_size=300, max_tokens=T)


def test_a_tokenizer_of_ones_own(words, tmp_path):
    """Its numbers and its vocabulary, for a text that is longer than what it is told to cut after."""
    words.save_preprocessing(tmp_path)
    own = LanguageModel("code", TEXT, max_tokens=T, tokenizer=tmp_path / "tokenizer.json")
    assert own.vocab_size == words.vocab_size > 256
    assert np.array_equal(own.split("test").ids, words.split("test").ids)
    other = Tokenizer(models.WordLevel({"def": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="is not byte-level"):
        LanguageModel("code", TEXT, max_tokens=T, tokenizer=tmp_path / "other.json")
    with pytest.raises(ValueError, match="is not a file"):
        LanguageModel("code", TEXT, max_tokens=T, tokenizer=tmp_path / "no.json")


def all_batches(task: LanguageModel, split: str, seed: int | None = None):
    return list(task.batches(split, tokens_per_batch=5 * T, seed=seed))


def test_bytes_are_their_own_numbers(task):
    tokenizer = byte_tokenizer()
    every = "".join(chr(i) for i in range(0, 3000, 7)) + "é\n\t\0 def"
    assert tokenizer.encode(every).ids == list(every.encode())
    assert tokenizer.decode(list(every.encode())) == every
    assert task.vocab_size == 256
    assert task.sizes == {"vocab_size": 256, "max_tokens": T}
    assert isinstance(task, TaskWithMetrics)


@pytest.mark.parametrize("kind", ["task", "words"])
def test_splits_are_blocks_of_the_text_that_follow_each_other(kind, request):
    task = request.getfixturevalue(kind)
    tokenizer, end = task._tokenizer, 0
    for split in SPLITS:
        ids = task.split(split).ids
        block = tokenizer.decode(ids.tolist())
        assert TEXT[end:].startswith(block)
        end += len(block)
        rows = [batch.inputs[0] for batch in all_batches(task, split)]
        assert np.array_equal(torch.cat(rows).flatten(), ids[: task.num_examples(split) * T])
    assert end == len(TEXT)


@pytest.mark.parametrize("seed", [None, 3])
def test_every_window_comes_once_with_the_tokens_after_it(task, seed):
    ids = task.split("train").ids.tolist()
    seen = []
    for batch in all_batches(task, "train", seed):
        assert len(batch.targets) <= 5
        assert torch.equal(batch.inputs[1], torch.ones_like(batch.inputs[0]))
        assert torch.equal(batch.inputs[0][:, 1:], batch.targets[:, :-1])
        seen += [(*row.tolist(), int(last)) for row, last in zip(batch.inputs[0], batch.targets[:, -1], strict=True)]
    expected = [tuple(ids[i : i + T + 1]) for i in range(0, len(ids) - T, T)]
    assert (seen == expected) == (seed is None)
    assert sorted(seen) == sorted(expected)
    assert task.num_examples("train") == len(expected)


def test_loss_error_and_bits_by_hand(task):
    targets = torch.tensor([[0, 1, 2, 3]]).repeat(2, 4)
    logits = torch.zeros(2, T, 256)
    logits[:, :, 1] = math.log(256)  # 256 of 511 for token 1, 1 of 511 for any other
    expected = -(0.25 * math.log(256 / 511) + 0.75 * math.log(1 / 511))
    assert float(task.loss(logits, targets)) == pytest.approx(expected)
    assert task.error(logits, targets) == pytest.approx(2 * 0.75)
    metrics = task.metrics(task.totals(logits, targets))
    assert metrics["bits per byte"] == pytest.approx(expected / math.log(2))
    assert metrics["perplexity"] == pytest.approx(math.exp(expected))


def test_bits_of_larger_tokens_are_shared_by_their_bytes(words):
    windows = words.split("test")
    inputs, targets = torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)
    totals = words.totals(torch.zeros(*inputs.shape, words.vocab_size), targets)
    text = words._tokenizer.decode(targets.flatten().tolist())
    assert totals["bytes"] == pytest.approx(len(text.encode()), abs=2)  # a character may be cut at an end
    bits = targets.numel() * math.log2(words.vocab_size)
    assert words.metrics(totals)["bits per byte"] == pytest.approx(bits / totals["bytes"])
    assert totals["bytes"] > 1.2 * totals["tokens"]


def test_the_same_text_gives_the_same_task(task, words):
    assert LanguageModel("other", TEXT, max_tokens=T).fingerprint == task.fingerprint
    assert LanguageModel("code", TEXT, vocab_size=300, max_tokens=T).fingerprint == words.fingerprint
    others = [LanguageModel("code", TEXT + "x", max_tokens=T), LanguageModel("code", TEXT, max_tokens=T + 1), words]
    assert task.fingerprint not in {other.fingerprint for other in others}


def test_baselines_by_hand():
    """In abababab… the bigram is right, and the most frequent byte half of the time."""
    task = LanguageModel("ab", "ab" * 2000 + "a", max_tokens=T)
    (frequent, frequent_error), (bigram, bigram_error) = task.trivial_baselines().items()
    assert frequent_error == pytest.approx(50, abs=1)
    assert bigram_error == 0
    assert frequent.startswith("most frequent token (1.1")  # almost one bit; the other 254 bytes are thought possible
    assert bigram.startswith("bigram (0.01")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"vocab_size": 255}, "vocab_size: 255 is not an integer of at least 256"),
        ({"max_tokens": 0}, "max_tokens: 0 is not an integer of at least 1"),
        ({"test_fraction": 0.5}, "test_fraction: 0.5 is not more than 0 and at most 0.3"),
        ({"text": ""}, "text: of 0 characters 0 tokens are 'train', less than a window of 128"),
        ({"text": "short"}, "text: of 5 characters 4 tokens are 'train', less than a window of 128 and the token after it"),
        ({"max_tokens": 2000}, "tokens are 'architecture', less than a window of 2000"),
    ],
)
def test_what_cannot_be_learned_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        LanguageModel(**{"name": "bad", "text": TEXT, **arguments})


def test_a_window_longer_than_a_batch_is_refused(task):
    with pytest.raises(ValueError, match="tokens_per_batch: 8 is less than the 16 tokens of an example"):
        next(task.batches("train", tokens_per_batch=8, seed=None))


def test_text_files_and_their_faults(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8-sig")
    assert TextFile(tmp_path / "book.txt", max_tokens=T).fingerprint == LanguageModel("code", TEXT, max_tokens=T).fingerprint
    with pytest.raises(ValueError, match=r"path: '.*none.txt' is not a file"):
        TextFile(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"a" * 50 + b"\xe9 ")
    with pytest.raises(ValueError, match=r"path: .*latin.txt is not UTF-8 text \(byte 50\)"):
        TextFile(tmp_path / "latin.txt")


def test_python_source_is_there_and_pinned(monkeypatch):
    task = PythonSource(max_characters=100_000, held_out=0.1)
    assert task.fingerprint == "828130de6724444d"
    monkeypatch.setattr(django_source, "pinned_django", _not_installed)
    with pytest.raises(ValueError, match=r"task: 'python_source' needs django==5\.2\.19; pip install"):
        PythonSource()


def _not_installed(_: str) -> None:
    raise PackageNotFoundError("django")


PICKS = {"width": 32, "depth": 2, "layer1.attention": "window", "layer2.attention": "full"}


@pytest.fixture(scope="module")
def family(task) -> DecoderFamily:
    space = decoder_space(width=(16, 32), depth=(1, 2), heads=(1, 2), ffn=(32,))
    return DecoderFamily(space, **task.sizes, head_size=8, window=4)


def arch_of(family: DecoderFamily) -> Architecture:
    return family.space.canonical({**family.space.largest().as_dict, **PICKS})


@pytest.fixture(scope="module")
def exported(task, family, tmp_path_factory):
    """A network that has learned a little, and its folder."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = family.network(arch_of(family), backend="blocks")
    config = TrainConfig(steps=60, tokens_per_batch=1024, learning_rate=5e-3)
    teach(network, task, config, Lesson(), compute=Compute(), seed=0)
    export_onnx(*form_of(family, network, Workload(1, 1, "decode", T - 1)), folder / "decode.onnx")
    task.save_preprocessing(folder)
    facts = {
        "id": "n", "names": [], "files": ["decode.onnx"], "answers": "decode.onnx", "validation_error_percent": 1.0,
        "run": {"provider": "CPUExecutionProvider", "threads": 1, "graph_optimization": "all"},
    }  # fmt: skip
    reads = {"kind": "language model", "answer": "label", "max_tokens": T}
    contract = {"format": "onnx", "networks": [facts], "files": files_of(folder), "input": reads}
    (folder / "contract.json").write_text(json.dumps({**contract, "sha256": checksum_of(contract)}))
    return network.eval(), folder


def test_a_text_goes_on_as_the_network_would(exported):
    network, folder = exported
    prompt = "def n"
    ids = torch.tensor([list(prompt.encode())])
    while ids.shape[1] < T:
        ids = torch.cat([ids, network(ids, torch.ones_like(ids))[:, -1:].argmax(-1)], dim=1)
    assert generate(folder, prompt, T - len(prompt)) == bytes(ids[0].tolist()).decode()


def test_a_text_goes_on_past_the_last_position(exported):
    network, folder = exported
    text = generate(folder, "def name_", 3 * T)
    assert len(text) == 9 + 3 * T
    ids = list(text.encode())
    expected = network(torch.tensor([ids[T - T // 2 + 1 : T + 1]]), torch.ones(1, T // 2, dtype=torch.int64))
    assert ids[T + 1] == int(expected[0, -1].argmax()), "the later half was read again"
    long = "def name_1(x):\n    return 1 * x  # more than a window\n"
    assert generate(folder, long, 5).startswith(long)


def test_randomness_is_the_seed_s(exported):
    _, folder = exported
    texts = [generate(folder, "def ", 30, temperature=1.5, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    rng = np.random.default_rng(0)
    drawn = [draw(np.log(np.array([0.2, 0.8], np.float32)), 1.0, rng) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.03)
    for temperature in (0.0, 1e-320):
        assert draw(np.array([0.0, 3.0, 1.0]), temperature, rng) == 1


def test_positions_never_run_out():
    """A network of which only the positions are watched."""

    class Watched:
        position, furthest = 0, 0

        def forget(self) -> None:
            self.position = 0

        def read(self, token: int) -> np.ndarray:
            self.position += 1
            self.furthest = max(self.furthest, self.position)
            return np.eye(8)[(token + 1) % 8]

    for longest in (1, 2, 5):
        watched: Any = Watched()
        answers = continued(watched, [0, 1, 2], longest=longest, temperature=0, seed=0)
        assert [next(answers) for _ in range(20)] == [(3 + i) % 8 for i in range(20)]
        assert watched.furthest == longest


def test_the_command_generates(exported, capsys):
    _, folder = exported
    words = [word.replace("runs/code/export/ID", str(folder)) for word in line_of("generate")]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("def ")
    assert main(["generate", f"export={folder}", "prompt=def f(x): {", "tokens=3"]) == 0, "a prompt is no YAML"
    assert capsys.readouterr().out.startswith("def f(x): {")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export=nowhere", "prompt=a"], "export: nowhere: contract.json: is missing or damaged"),
        (["export={}", "prompt="], "prompt=…: is empty: there is no token to go on from"),
        (["export={}", "prompt=\udcff"], "prompt=…: is not valid UTF-8 (byte 0)"),
        (["export={}", "prompt=a", "tokens=0"], "tokens: 0 is not at least 1"),
        (["export={}", "prompt=a", "temperature=-1"], "temperature: -1.0 is not 0 or more"),
        (["export={}", "prompt=a", "temperature=1", "seed=-1"], "seed: -1 is not 0 or more"),
        (["export={}", "prompt=a", "tokens=many"], "tokens: 'many' is not a whole number"),
        (["prompt=a"], "export=… is missing"),
    ],
)
def test_the_command_s_faults(exported, capsys, words, said):
    assert main(["generate", *(word.format(exported[1]) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert generation.PROMPT == "prompt="


def test_a_changed_decoder_does_not_go_on(exported, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(exported[1], folder)
    content = bytearray((folder / "decode.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "decode.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"export: .*: decode\.onnx: is not the file that was exported"):
        generate(folder, "a", 1)
    contract = json.loads((folder / "contract.json").read_text())
    contract["input"]["kind"] = "text"
    (folder / "contract.json").write_text(json.dumps({**contract, "sha256": checksum_of(contract)}))
    with pytest.raises(ValueError, match=r"export: .* holds a network for text, and no decoder"):
        generate(folder, "a", 1)


def test_a_file_s_scores_are_those_of_the_network(task, family, exported, tmp_path):
    network, _ = exported
    unused = cast(Any, SimpleNamespace())
    run = RunDirectory(tmp_path)
    finisher = Finisher(family, task, unused, Workload(1, 1, "decode", 7), Compute(), FinishSettings(), 0, run)
    arch = family.space.largest()
    (tmp_path / "shortlist").mkdir()
    export_onnx(network, family.example_input(Workload(tokens=T)), finisher.files.onnx_path(arch))
    scores = finisher.scores.of(arch, "test")
    batches = all_batches(task, "test")
    with torch.no_grad():
        losses = torch.cat([task.loss(network(*b.inputs), b.targets)[None] * len(b.targets) for b in batches])
        wrong = sum(task.error(network(*b.inputs), b.targets) for b in batches)
    nats = float(losses.sum()) / task.num_examples("test")
    assert scores["error_percent"] == pytest.approx(100 * wrong / task.num_examples("test"))
    assert scores["metrics"]["bits per byte"] == pytest.approx(nats / math.log(2), rel=1e-4)
    assert scores["metrics"]["bits per byte"] < 3, "it has learned a little"


@pytest.fixture
def finisher(task, family, exported, tmp_path) -> Finisher:
    """That has the exported network on its short-list."""
    network, _ = exported
    run, workload = RunDirectory(tmp_path / "run"), Workload(1, 1, "decode", T - 1)
    finisher = Finisher(family, task, LocalCpu(), workload, Compute(), FinishSettings(), 0, run)
    with run.replacing(f"shortlist/{arch_of(family).id}.safetensors") as path:
        save_file(network.state_dict(), path)
    onnx = finisher.files.onnx_path(arch_of(family))
    export_onnx(network, family.example_input(workload.encoded), onnx, kind=finisher.files.onnx_kind)
    return finisher


def shipped_by(finisher):
    arch = arch_of(finisher.family)
    verdict = Verdict.of(asked_ms=1.0, asked_origin="user", predicted_ms=1.0, predicted_upper_ms=1.0)
    shipment = Shipment(arch, finisher.files.shipped(arch), None, verdict)
    return ship(finisher, [shipment], Terms("again", Limits(tolerance=1e-4)))


def test_a_decoder_ships_over_one_file_of_weights(finisher):
    shipped = shipped_by(finisher)
    assert shipped.contract["shared_weights"]["shared_percent"] == pytest.approx(66.7, abs=2)
    [facts] = shipped.networks
    assert facts["timed"] == facts["answers"] == "decode.onnx"
    assert facts["files"] == ["model.onnx", "prefill.onnx", "decode.onnx", "weights.bin"]
    assert facts["test"]["metrics"]["bits per byte"] < 3
    steps = facts["parity"]["token_by_token"]
    assert steps["num_tokens"] == steps["num_sequences"] * (T + T - T // 2 + 1)
    assert steps["equal_decisions"] == 1
    assert 0 < steps["max_abs_difference"] <= 1e-4
    assert f"100.00 % of {steps['num_tokens']} tokens" in (shipped.folder / "card.md").read_text()
    predictor = Predictor(
        shipped.folder, SimpleNamespace(within=None, network=None, at_once=False, tokens=T, temperature=0.0, seed=0)
    )
    for prompt in ("def n", "def name_1(x):\n    return 1 * x  # more than a window\n"):
        [answer] = predictor(prompt.encode())
        assert answer["text"] == generate(shipped.folder, prompt, T)
        assert answer["cut"] == (len(prompt) > T)
    with pytest.raises(Refused, match="there is no token to go on from"):
        list(predictor(b""))


def test_a_decode_file_that_says_otherwise_does_not_ship(family, finisher):
    """Its whole inputs are answered as the network answers them; only token by token is it another."""
    arch, files = arch_of(family), finisher.files
    other = family.network(arch, backend="blocks").eval()
    export_onnx(*form_of(family, other, files.workload), files.onnx_path(arch, "decode"), kind=files.onnx_kind)
    with pytest.raises(
        BrokenPromiseError, match=f"tolerance: {arch.id}, token by token, has .*, promised is at most 0.0001; nothing was written"
    ):
        shipped_by(finisher)
    assert not (files.run / "test.json").exists(), "the test split was not read"


def test_only_decoders_are_timed_token_by_token(task, tmp_path):
    def pipeline(family: Any, settings: Settings) -> Pipeline:
        unused = cast(Any, SimpleNamespace())
        return Pipeline(
            task=task, family=family, device=LocalCpu(), latency_model=AdditiveLatency(), settings=settings,
            directory=tmp_path / "run", store=unused, report=unused,
        )  # fmt: skip

    decoders = DecoderFamily(decoder_space(), 256, max_tokens=T)
    assert pipeline(decoders, Settings(mode="decode", past=15)).workload == Workload(1, 1, "decode", 15)
    assert pipeline(decoders, Settings(mode="prefill")).workload == Workload(1, T, "prefill")
    with pytest.raises(ValueError, match="tokens: 17 of the workload are more than max_tokens 16"):
        pipeline(decoders, Settings(mode="decode", past=16))
    with pytest.raises(ValueError, match="mode: 'decode' is for spaces of decoders; encoder answers for whole inputs"):
        pipeline(EncoderFamily(encoder_space(), 256, 2), Settings(mode="decode"))
