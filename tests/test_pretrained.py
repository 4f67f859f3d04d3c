"""A checkpoint becomes the largest network: equal to a forward pass that is written here, whatever the order of its parts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from experiments import bench
from experiments.benchmarks.pretrained import Point, Side, dominated_share
from experiments.tasks.text import TextClassification
from nas.compute import Compute
from nas.export import export_onnx
from nas.protocols import SPLITS, PretrainedFamily
from nas.supernet import cut_out
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.importance import sort_by_importance
from tests.support.commands import refused

WIDTH, HEADS, FFN, VOCABULARY, POSITIONS = 32, 4, 48, 60, 20
GLOBALS = ("activation", "norm_kind", "sharing")
BERT = {
    "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "n_layers": 2, "n_heads": HEADS, "activation": "gelu"}
MINILM = os.environ.get("PARETOFORMER_MINILM", "")


def bert_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def make(name: str, *shape: int, mean: float = 0.0) -> None:
        tensors[name] = mean + 0.3 * torch.randn(shape, generator=generator)

    def dense(name: str, outputs: int, inputs: int) -> None:
        make(f"{name}.weight", outputs, inputs)
        make(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        make(f"{name}.weight", WIDTH, mean=1.0)
        make(f"{name}.bias", WIDTH)

    make("embeddings.word_embeddings.weight", VOCABULARY, WIDTH)
    make("embeddings.position_embeddings.weight", POSITIONS, WIDTH)
    make("embeddings.token_type_embeddings.weight", 2, WIDTH)
    norm("embeddings.LayerNorm")
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{name}", WIDTH, WIDTH)
        dense(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", FFN, WIDTH)
        dense(f"{layer}.output.dense", WIDTH, FFN)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", WIDTH, WIDTH)
    return tensors


def bert_mean(tensors, ids_BT, mask_BT, *, layers: int, heads: int) -> torch.Tensor:
    """BERT in the order of its paper, and the mean over the tokens of what comes out, [B, D]."""
    t = tensors

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    x = t["embeddings.word_embeddings.weight"][ids_BT] + t["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
    x = norm("embeddings.LayerNorm", x + t["embeddings.token_type_embeddings.weight"][0])
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (split(dense(f"{layer}.attention.self.{name}", x)) for name in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(mask_BT[:, None, None, :] == 0, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = norm(f"{layer}.attention.output.LayerNorm", x + dense(f"{layer}.attention.output.dense", mixed))
        hidden = F.gelu(dense(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", hidden))
    mask = mask_BT[:, :, None].to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1)


def as_distilbert(tensors) -> dict[str, torch.Tensor]:
    """The same weights under the other names; token type 0 goes to the positions."""
    names = {
        "encoder.layer": "transformer.layer", "attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm", "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "pooler" not in name and "token_type" not in name:
            renamed[f"distilbert.{name}"] = tensor
    token_type = tensors["embeddings.token_type_embeddings.weight"][0]
    renamed["distilbert.embeddings.position_embeddings.weight"] = tensors["embeddings.position_embeddings.weight"] + token_type
    return renamed


def write(folder: Path, config, tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def make_family(**changes) -> EncoderFamily:
    sizes = {"width": (16, WIDTH), "depth": (1, 2), "heads": (2, HEADS), "ffn": (16, FFN)}
    facts = {"vocab_size": VOCABULARY, "num_classes": 3, "max_tokens": 12, "head_size": 8, "norm": "post"}
    sizes |= {name: value for name, value in changes.items() if name in (*sizes, "ffn_kind", "rank", *GLOBALS)}
    facts |= {name: value for name, value in changes.items() if name in facts}
    return EncoderFamily(encoder_space(**sizes), **facts)


def begun(family: EncoderFamily, folder: Path) -> torch.nn.Module:
    """The supernet as a search begins with it."""
    supernet = family.supernet()
    supernet.load_state_dict({**supernet.state_dict(), **family.pretrained(folder)})
    return supernet


def mean_of(network: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """What its classifier reads, [B, D]."""
    found = []
    handle = network.classifier.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    network(*inputs)
    handle.remove()
    return found[0].detach()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def with_old_names(tensors) -> dict[str, torch.Tensor]:
    renames = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in renames.items():
            name = name.replace(new, old)
        renamed[f"bert.{name}"] = tensor
    return renamed


KINDS = {
    "ffn_kind": ("glu", "mlp", "lowrank", "none"),
    "rank": (8, WIDTH),
    "activation": ("gelu", "relu"),
    "norm_kind": ("layer", "rms"),
    "sharing": ("none", "pairs", "all"),
}


FORMS = {"bert": (BERT, dict), "bert with a head": (BERT, with_old_names), "distilbert": (DISTILBERT, as_distilbert)}


@pytest.mark.parametrize("kinds", [{}, {"ffn_kind": ("glu", "mlp")}, KINDS], ids=["mlp", "glu", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_the_largest_network_is_the_checkpoint(form, kinds, inputs, tmp_path):
    config, rename = FORMS[form]
    family, tensors = make_family(**kinds), bert_tensors()
    assert isinstance(family, PretrainedFamily)
    supernet = begun(family, write(tmp_path / "model", config, rename(tensors)))
    reference = bert_mean(tensors, *inputs, layers=2, heads=HEADS)
    mean = mean_of(supernet, *inputs)
    assert not torch.allclose(mean, reference), "the channels were sorted"
    sorted_both = [x.sort(dim=-1).values for x in (mean, reference)]  # which channel is which is the order's own affair
    torch.testing.assert_close(*sorted_both, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean @ mean.T, reference @ reference.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_sorting_does_not_change_what_the_largest_computes(norm, inputs):
    family = make_family(norm=norm, ffn_kind=("glu", "mlp"))
    supernet = family.supernet().double()
    generator = torch.Generator().manual_seed(3)
    for parameter in supernet.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    before = supernet(*inputs)
    moved = sort_by_importance(supernet.state_dict(), head_size=8, pre_norm=norm == "pre")
    for name, value in supernet.state_dict().items():
        of_stream = "blocks" not in name or "norm" in name or name.endswith(("out.bias", "down.bias"))
        stays = name == "classifier.bias" or (norm == "pre" and of_stream)
        assert torch.equal(moved[name], value) == stays, name
    supernet.load_state_dict(moved)
    torch.testing.assert_close(supernet(*inputs), before, rtol=1e-10, atol=1e-10)


def test_factored_layers_begin_as_the_nearest_of_their_rank(inputs, tmp_path):
    family = make_family(**KINDS)
    supernet, space = begun(family, write(tmp_path / "model", BERT, bert_tensors())), family.space
    picks = {**space.largest().as_dict, "layer1.ffn_kind": "lowrank", "layer2.ffn_kind": "lowrank"}
    archs = [space.canonical({**picks, "layer1.rank": rank, "layer2.rank": rank}) for rank in (8, WIDTH)]
    small, whole = (cut_out(family, supernet, arch, Compute()) for arch in archs)
    torch.testing.assert_close(
        whole(*inputs), cut_out(family, supernet, space.largest(), Compute())(*inputs), rtol=1e-3, atol=1e-3
    )
    up, layer = supernet.stack.layers[0].ffn.up.weight, small.stack.layers[0].ffn.up
    rest = torch.linalg.svdvals(up)[8:].square().sum().sqrt()
    torch.testing.assert_close((up - layer.expand @ layer.reduce).norm(), rest, rtol=1e-4, atol=1e-4)


def test_what_matters_is_first(tmp_path):
    """A head and neurons that nothing reads come last."""
    tensors = bert_tensors()
    tensors["encoder.layer.0.attention.output.dense.weight"][:, :8] = 0
    tensors["encoder.layer.1.output.dense.weight"][:, 3] = 0
    weights = make_family().pretrained(write(tmp_path / "model", BERT, tensors))
    assert not weights["stack.blocks.0.attention.out.weight"][:, -8:].any()
    assert not weights["stack.blocks.1.ffn.down.weight"][:, -1].any()
    assert weights["stack.blocks.1.ffn.down.weight"][:, 0].any()


@pytest.mark.parametrize(
    ("config", "name", "shape", "changes", "message"),
    [
        (
            {},
            "encoder.layer.1.intermediate.dense.bias",
            None,
            {},
            "encoder.layer.1.intermediate.dense.bias: the checkpoint has no",
        ),
        (
            {},
            "encoder.layer.0.output.dense.weight",
            (WIDTH, 40),
            {},
            "output.dense.weight: the checkpoint's is (32, 40), the space's",
        ),
        ({}, None, None, {"width": (16, 64)}, r"embeddings.word_embeddings.weight: the checkpoint's is (60, 32)"),
        ({}, None, None, {"vocab_size": 50}, "does the task use the checkpoint's own tokenizer (task.tokenizer=…)?"),
        (
            {},
            None,
            None,
            {"max_tokens": 21},
            "position_embeddings.weight: the checkpoint's is (20, 32), the space's largest network",
        ),
        ({}, None, None, {"depth": (1,)}, "num_hidden_layers: 2 of"),
        ({}, None, None, {"head_size": 16, "heads": (1, 2)}, "num_attention_heads: 4 of"),
        ({"hidden_act": "relu"}, None, None, {}, "hidden_act: 'relu' of"),
        ({"hidden_act": "quick_gelu"}, None, None, {}, "hidden_act: 'quick_gelu' of"),
        ({"position_embedding_type": "relative_key"}, None, None, {}, "position_embedding_type: 'relative_key' of"),
        ({}, "encoder.layer.1.crossattention.self.key.weight", (WIDTH, WIDTH), {}, "our networks have no place for this tensor"),
        ({"layer_norm_eps": 1e-5}, None, None, {}, "layer_norm_eps: 1e-05 of"),
        ({"model_type": "t5"}, None, None, {}, "model_type 't5' of"),
        ({}, None, None, {"norm": "pre"}, "space.norm: 'pre' is not 'post'"),
        ({}, None, None, {"activation": ("relu",)}, "hidden_act: 'gelu' of"),
        ({}, None, None, {"sharing": ("all",)}, "space.sharing: 'all' is not 'none', which the checkpoint"),
        (
            {},
            None,
            None,
            {"ffn_kind": ("lowrank",), "rank": (8,)},
            "space.ffn_kind: 'lowrank' is not 'mlp', which",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(config, name, shape, changes, message, tmp_path):
    tensors = bert_tensors()
    if name is not None:
        tensors.pop(name, None)
        tensors |= {name: torch.zeros(shape)} if shape else {}
    folder = write(tmp_path / "model", {**BERT, **config}, tensors)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        make_family(**changes).pretrained(folder)
    assert message in str(refusal.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json"):
        make_family().pretrained(tmp_path)
    folder = write(tmp_path / "model", BERT, bert_tensors())
    (folder / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        make_family().pretrained(folder)


def test_an_unknown_place_of_the_norm():
    with pytest.raises(ValueError, match=r"norm: 'middle' is not one of \('pre', 'post'\)"):
        make_family(norm="middle")


def write_films(folder: Path) -> Path:
    """Nine good and nine bad ones."""
    lines = [
        f"{word} film,{label}" for kind, label in (("good", "yes"), ("bad", "no")) for word in [f"{kind}{i}" for i in range(9)]
    ]
    (folder / "films.csv").write_text("\n".join(["text,label", *lines]))
    return folder / "films.csv"


def test_a_search_refuses_before_any_work(tmp_path):
    folder = write(tmp_path / "model", BERT, bert_tensors())
    task = ["task=csv", f"task.path={write_films(tmp_path)}", "task.text=text", "task.label=label"]
    words = ["search", *task, "space=encoder_tiny", "space.norm=post", "init=pretrained", f"run={tmp_path / 'run'}"]
    refused(*words, message="init.path: has no value")
    refused(*words, f"init.path={folder}", message="init: num_hidden_layers: 2 of")
    assert not (tmp_path / "run" / "run.json").exists()


def write_tokenizer(folder: Path, *words: str) -> Path:
    """Like BERT's: whole words, and two special tokens around a text."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    special = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing", "single": [*special, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [*special, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
    }  # fmt: skip
    content = {
        "version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "post_processor": template,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


@pytest.fixture
def words_file(tmp_path) -> Path:
    return write_tokenizer(tmp_path, "good", "bad", "film")


def test_a_task_with_a_tokenizer_of_ones_own(words_file, tmp_path):
    splits = {split: [("good film", "yes"), ("a bad bad bad film", "no")] for split in SPLITS}
    task = TextClassification("films", splits=splits, vocab_size=64, max_tokens=6, tokenizer=words_file)
    assert task.vocab_size == 7
    [batch] = task.batches("test", tokens_per_batch=64, seed=None)
    assert batch.inputs[0].tolist() == [[2, 4, 6, 3, 0, 0], [2, 1, 5, 5, 5, 3]]
    task.save_preprocessing(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("good film").ids == [2, 4, 6, 3]
    assert task.fingerprint != TextClassification("films", splits=splits, vocab_size=64, max_tokens=6).fingerprint


@pytest.mark.parametrize(("name", "message"), [("no.json", "is not a file"), ("bad.json", "is not a tokenizer.json")])
def test_tokenizers_that_are_none(name, message, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    splits = {split: [("good", "yes"), ("bad", "no")] for split in SPLITS}
    with pytest.raises(ValueError, match=message):
        TextClassification("films", splits=splits, vocab_size=64, max_tokens=6, tokenizer=tmp_path / name)


def test_special_tokens_leave_room(words_file):
    splits = {split: [("good", "yes"), ("bad", "no")] for split in SPLITS}
    with pytest.raises(ValueError, match="max_tokens: 2 leaves nothing beside the 2 special tokens"):
        TextClassification("films", splits=splits, vocab_size=64, max_tokens=2, tokenizer=words_file)


def test_a_post_norm_network_is_exported(tmp_path):
    family = make_family()
    supernet = begun(family, write(tmp_path / "model", BERT, bert_tensors()))
    network = cut_out(family, supernet, family.space.smallest(), Compute(backend="blocks")).eval()
    report = export_onnx(network, family.example_input(Workload(tokens=8)), tmp_path / "model.onnx")
    assert report.max_abs_difference < 1e-4


def test_the_benchmark_ends_with_its_figures_and_trains_once(tmp_path, capsys):
    folder = write(tmp_path / "model", BERT, bert_tensors())
    write_tokenizer(
        folder, "film", *(f"{kind}{i}" for kind in ("good", "bad") for i in range(9)), *(f"unused{i}" for i in range(37))
    )
    words = ["pretrained", "preset=tiny", f"path={folder}", f"data={write_films(tmp_path)}", f"directory={tmp_path / 'runs'}"]
    assert bench.main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert all(any(f"Front of the {start} start" in line for line in lines) for start in ("pretrained", "scratch"))
    share = figures["scratch_front_dominated_share"]
    assert share is None or 0 <= share <= 1
    for start in ("pretrained", "scratch"):
        assert figures[f"{start}_train_cpu_seconds"] > 0
        assert all(0 <= figures[f"{start}_{kind}hypervolume"] <= figures["majority_error_percent"] for kind in ("", "inherited_"))
        assert 0 <= figures[f"{start}_error_percent"] <= 100
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    finalists = [
        {path.name for path in trained if path.parts[-3:-1] == (start, "shortlist")} for start in ("pretrained", "scratch")
    ]
    assert finalists[0] == finalists[1] != set(), "both sides train the same networks"
    assert len(trained) == 2 * (1 + len(finalists[0])), "and a supernet"
    assert bench.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")} == trained


def test_the_benchmark_counts_what_is_dominated():
    def front(*costs: tuple[float, float]) -> list[Point]:
        arch = make_family().space.smallest()
        return [Point(arch, latency, latency, error, error) for latency, error in costs]

    ours, theirs = front((0.2, 40.0), (0.6, 20.0)), front((0.1, 50.0), (0.2, 40.0), (0.3, 40.0), (0.6, 30.0))
    assert dominated_share(ours, theirs) == 0.5, "not the fastest, and not an equal one"
    side = Side(np.ones((1, 2)), (*ours, *front((0.7, 25.0), (1.5, 1.0))), 1.0)
    assert side.front == ours
    assert side.error_percent == 20.0, "the best of all is beyond the budget"


@pytest.mark.skipif(not MINILM, reason="no all-MiniLM-L6-v2 (PARETOFORMER_MINILM names its folder)")
def test_minilm_is_minilm():
    """The real checkpoint; sentences that mean the same are the closest."""
    folder = Path(MINILM)
    sizes = {"width": (384,), "depth": (6,), "heads": (12,), "ffn": (1536,)}
    family = EncoderFamily(encoder_space(**sizes), 30522, 2, 128, head_size=32, norm="post")
    assert "MiniLM-6" in family.hand_designed()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    sentences = ["How can I reset my password?", "I forgot my login code.", "The cat sleeps in the sun."]
    encodings = tokenizer.encode_batch(sentences)
    inputs = [torch.tensor([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask")]
    mean = mean_of(begun(family, folder).eval(), *inputs)
    reference = bert_mean(load_file(folder / "model.safetensors"), *inputs, layers=6, heads=12)
    torch.testing.assert_close(mean.sort(dim=-1).values, reference.sort(dim=-1).values, rtol=1e-5, atol=1e-5)
    a, b, c = F.normalize(mean, dim=-1)
    assert a @ b > 0.5 > 0.2 > a @ c
