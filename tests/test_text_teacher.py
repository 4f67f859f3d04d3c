"""A fine-tuned BERT or DistilBERT answers as its format says, and teaches only what it has learned."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from experiments.build import build
from experiments.checkpoint_teacher import CheckpointTeachers, check_teacher, checkpoint_teacher
from experiments.config import composed
from experiments.progress import Reporter
from experiments.run_directory import RunError
from experiments.stages import check_stages
from experiments.tasks.digits import Digits
from experiments.tasks.text import TextClassification
from nas.finish.learn import Learn
from nas.finish.teaching import Lesson
from nas.training import TrainConfig
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.text_teacher import TextTeacher
from tests.support.stages import FAST, Scale, finisher_of, stopped_and_done, through

D, HEADS, FFN, LAYERS, POSITIONS = 16, 2, 24, 2, 12
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "fair", "very", "not"]
CLASSES = ("bad", "fair", "good")
TEXTS = [("very good", "good"), ("good", "good"), ("bad", "bad"), ("not good", "bad"), ("very fair", "fair"), ("fair", "fair")]
ATTENTION = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
}
REST = {
    "bert": ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    "distilbert": ("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
}
LAYER = {"bert": "bert.encoder.layer", "distilbert": "distilbert.transformer.layer"}
CONFIG = {
    "bert": {
        "model_type": "bert", "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "id2label": {"0": "good", "1": "bad", "2": "fair"},
    },
    "distilbert": {"model_type": "distilbert", "n_layers": LAYERS, "n_heads": HEADS, "activation": "gelu"},
}  # fmt: skip


def written(folder, kind):
    """A checkpoint as the format has it; its reference: a network of PyTorch's own layers, and all tensors."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(D, HEADS, FFN, 0.0, "gelu", 1e-12, batch_first=True).eval() for _ in range(LAYERS)]
    tensors: dict[str, torch.Tensor] = {}

    def put(name, module):
        for which, value in module.named_parameters():
            nn.init.normal_(value, mean=float("norm" in name.lower() and which == "weight"), std=0.5)
            tensors[f"{name}.{which}"] = value.detach()

    embeddings = {"word": len(WORDS), "position": POSITIONS} | ({"token_type": 2} if kind == "bert" else {})
    tables = {name: nn.Embedding(size, D) for name, size in embeddings.items()}
    for name, table in tables.items():
        put(f"{kind}.embeddings.{name}_embeddings", table)
    norm, before, last = nn.LayerNorm(D, eps=1e-12), nn.Linear(D, D), nn.Linear(D, len(CLASSES))
    put(f"{kind}.embeddings.LayerNorm", norm)
    put("bert.pooler.dense" if kind == "bert" else "pre_classifier", before)
    put("classifier", last)
    for i, layer in enumerate(layers):
        parts = (layer.norm1, layer.linear1, layer.linear2, layer.norm2)
        for name, module in zip(REST[kind], parts, strict=True):
            put(f"{LAYER[kind]}.{i}.{name}", module)
        *packed, out = ATTENTION[kind]
        put(f"{LAYER[kind]}.{i}.{out}", layer.self_attn.out_proj)
        nn.init.normal_(layer.self_attn.in_proj_weight, std=0.5)
        nn.init.normal_(layer.self_attn.in_proj_bias, std=0.5)
        weights, biases = layer.self_attn.in_proj_weight.detach().chunk(3), layer.self_attn.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(packed, weights, biases, strict=True):
            tensors |= {f"{LAYER[kind]}.{i}.{name}.weight": weight, f"{LAYER[kind]}.{i}.{name}.bias": bias}
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG[kind]))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))

    @torch.no_grad()
    def answers(ids):
        """[B, C] of texts without padding, in the checkpoint's order."""
        x = tables["word"](ids) + tables["position"](torch.arange(ids.shape[1]))
        x = norm(x + tables["token_type"](torch.zeros_like(ids)) if kind == "bert" else x)
        for layer in layers:
            x = layer(x)
        return last(torch.tanh(before(x[:, 0])) if kind == "bert" else before(x[:, 0]).relu())

    return answers


def task_of(folder, **changes):
    splits = dict.fromkeys(("train", "architecture", "validation", "test"), TEXTS)
    settings = {"splits": splits, "vocab_size": 100, "max_tokens": 8, "tokenizer": folder / "tokenizer.json", **changes}
    return TextClassification("opinions", **settings)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_fine_tuned_checkpoint_answers_as_its_format_says(tmp_path, kind):
    answers, task = written(tmp_path / "teacher", kind), task_of(tmp_path / "teacher")
    teacher = checkpoint_teacher(tmp_path / "teacher", task)
    ids = torch.tensor([[2, 7, 4, 3], [2, 8, 5, 3]])
    order = [1, 2, 0] if kind == "bert" else [0, 1, 2]  # of "bad", "fair", "good", where the checkpoint names its classes
    torch.testing.assert_close(teacher(ids, torch.ones_like(ids)), answers(ids)[:, order], rtol=1e-4, atol=1e-5)
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(teacher(padded, (padded > 0).long()), answers(ids)[:, order], rtol=1e-4, atol=1e-5)
    [batch] = task.batches("train", tokens_per_batch=1000, seed=None)
    assert (batch.inputs[0][:, 0] == 2).all(), "its first token answers"
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_stage_learns_from_it(tmp_path):
    written(tmp_path / "teacher", "bert")
    task = task_of(tmp_path / "teacher")
    space = encoder_space(width=(16,), depth=(1,), heads=(1,), ffn=(16,), attention=("full",))
    family = EncoderFamily(space, task.vocab_size, 3, max_tokens=8, head_size=8)
    finisher = replace(finisher_of(family, tmp_path / "run", Scale(constant=True)), task=task)
    teacher = teachers(finisher).teacher(str(tmp_path / "teacher"))
    lesson = Lesson(alpha=(0.0, 0.0), beta=(1.0, 1.0), teacher=str(tmp_path / "teacher"))
    stage = Learn(train=TrainConfig(steps=150, tokens_per_batch=64, learning_rate=0.02), lesson=lesson)
    [report] = through(finisher, {"distil": stage}, teachers=[teacher])
    assert f"it learned from {tmp_path / 'teacher'}, too" in report.sentence
    [batch] = task.batches("validation", tokens_per_batch=1000, seed=None)
    with torch.no_grad():
        wanted = teacher(*batch.inputs).argmax(-1)
        assert (finisher.files.network(space.largest(), tag="distil")(*batch.inputs).argmax(-1) == wanted).all()


def teachers(finisher):
    return CheckpointTeachers(finisher.task, finisher.compute, finisher.run, Reporter(quiet=True))


def taught(tmp_path, name, steps=9, **lesson):
    """A finisher whose short-list a checkpoint teaches."""
    folder = tmp_path / "teacher"
    task = task_of(folder)
    space = encoder_space(width=(16,), depth=(1,), heads=(1,), ffn=(16,), attention=("full",))
    family = EncoderFamily(space, task.vocab_size, 3, max_tokens=8, head_size=8)
    train = TrainConfig(steps=steps, tokens_per_batch=16, learning_rate=0.02)
    lesson = Lesson(alpha=(0.0, 0.0), beta=(1.0, 1.0), teacher=str(folder))
    finisher = finisher_of(family, tmp_path / name, Scale(constant=True), train=train, most_steps=steps, lesson=lesson)
    finisher = replace(finisher, task=task)
    return replace(finisher, outsider=partial(teachers(finisher).teacher, str(folder)))


def test_the_short_list_learns_from_it(tmp_path):
    written(tmp_path / "teacher", "bert")
    finisher = taught(tmp_path, "run", steps=150)
    arch = finisher.family.space.largest()
    assert finisher.to_finish(arch) == (arch,), "the largest network is not needed, and learns, too"
    assert finisher.steps(arch) == 150, "what it answers is known"
    finisher.finish(arch, finisher.family.supernet())
    assert finisher.files.record(arch)["taught_by"] == [str(tmp_path / "teacher")]
    [batch] = finisher.task.batches("validation", tokens_per_batch=1000, seed=None)
    with torch.no_grad():
        wanted = checkpoint_teacher(tmp_path / "teacher", finisher.task)(*batch.inputs).argmax(-1)
        assert (finisher.files.network(arch)(*batch.inputs).argmax(-1) == wanted).all()


def test_it_is_asked_once_for_each_example_in_a_run(tmp_path, monkeypatch):
    written(tmp_path / "teacher", "distilbert")
    finisher, folder = taught(tmp_path, "run"), str(tmp_path / "teacher")
    sound, asked = TextTeacher.forward, list[int]()
    monkeypatch.setattr(TextTeacher, "forward", lambda self, ids, mask: asked.append(len(ids)) or sound(self, ids, mask))
    first = teachers(finisher).teacher(folder)
    assert sum(asked) == len(TEXTS)
    again = teachers(finisher).teacher(folder)
    assert sum(asked) == len(TEXTS)
    assert again.name == folder
    network = checkpoint_teacher(tmp_path / "teacher", finisher.task)
    for batch in finisher.task.batches("train", tokens_per_batch=16, seed=3):
        assert torch.equal(first(*batch.inputs), again(*batch.inputs))
        torch.testing.assert_close(first(*batch.inputs), sound(network, *batch.inputs))
    [kept] = (tmp_path / "run").glob("teacher.*.safetensors")
    kept.write_bytes(b"half")
    with pytest.raises(RunError, match=r"teacher\..*\.safetensors: is damaged; delete it to do this part again"):
        teachers(finisher).teacher(folder)
    named = CONFIG["distilbert"] | {"id2label": {"0": "good", "1": "bad", "2": "fair"}}
    (tmp_path / "teacher/config.json").write_text(json.dumps(named))
    assert not torch.equal(teachers(finisher).teacher(folder).logits_NC, first.logits_NC), "another checkpoint answers anew"


@pytest.mark.parametrize("after", [3, 8])
def test_a_training_that_it_teaches_goes_on_after_a_kill_to_the_same_weights(tmp_path, monkeypatch, after):
    written(tmp_path / "teacher", "bert")
    whole, stopped = (taught(tmp_path, name) for name in ("whole", "stopped"))
    arch, supernet = whole.family.space.largest(), whole.family.supernet()
    whole.finish(arch, supernet)
    stopped_and_done(lambda: stopped.finish(arch, supernet), monkeypatch, after=after, steps=9)
    first, second = (finisher.run / f"{finisher.files.name(arch)}.safetensors" for finisher in (whole, stopped))
    assert first.read_bytes() == second.read_bytes()


def test_a_teacher_of_the_short_list_is_refused_before_any_work(tmp_path):
    written(tmp_path / "teacher", "bert")
    words = ["experiment=smoke", "task=digits", "space=vision", "space.patch=[2,4]", f"run={tmp_path}/run"]
    message = r"finish.lesson.teacher: the checkpoint .* classifies whole texts, the task digits does not"
    with pytest.raises(ValueError, match=message):
        build(composed(*words, f"finish.lesson.teacher={tmp_path}/teacher"), report=Reporter(quiet=True))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"finish.lesson.teacher: max_tokens: 13 of the task, the checkpoint .* has 12"):
        check_teacher("finish.lesson", taught(tmp_path, "run").settings.lesson, task_of(tmp_path / "teacher", max_tokens=13))


def without(name):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if n != name}, folder / "model.safetensors")

    return change


def config(**values):
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG["bert"] | values))


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        (
            lambda folder: None,
            {"tokenizer": None},
            r"the tokenizer of the task opinions is not that of .*; task.tokenizer=.* makes",
        ),
        (lambda folder: None, {"max_tokens": 13}, "max_tokens: 13 of the task, the checkpoint .* has 12 positions"),
        (
            config(id2label={"0": "good", "1": "bad", "2": "ugly"}),
            {},
            r"id2label: \['bad', 'good', 'ugly'\] of .* are not the task's",
        ),
        (config(model_type="roberta"), {}, r"the model_type 'roberta' of .* is not one of \('bert', 'distilbert'\)"),
        (config(hidden_act="tanh"), {}, "hidden_act: 'tanh' of .* is not one of"),
        (without("classifier.weight"), {}, "classifier.weight: .* has no such tensor; it is not fine-tuned"),
        (without("bert.encoder.layer.1.output.dense.bias"), {}, "encoder.layer.1.output.dense.bias: the checkpoint has no such"),
        (lambda folder: (folder / "tokenizer.json").unlink(), {}, "has no tokenizer.json, by which its words could be compared"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), {}, "model.safetensors cannot be read"),
    ],
)
def test_who_cannot_teach_is_refused(tmp_path, change, task, message):
    written(tmp_path / "teacher", "bert")
    made = task_of(tmp_path / "teacher", **task)
    change(tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        checkpoint_teacher(tmp_path / "teacher", made)


def test_another_number_of_classes_is_refused(tmp_path):
    written(tmp_path / "teacher", "bert")
    with pytest.raises(ValueError, match=r"classifier.weight: the checkpoint .* has 3 classes, the task has 2"):
        TextTeacher(tmp_path / "teacher", labels=("bad", "good"), vocab_size=9, max_tokens=8)


def test_it_is_refused_before_any_work(tmp_path):
    written(tmp_path / "teacher", "bert")
    with pytest.raises(ValueError, match=r"teacher: 'nobody' is not one of \('largest', .*\), nor a folder"):
        Lesson(teacher="nobody")
    lesson = Lesson(beta=(1.0, 1.0), teacher=str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=r"match: \['hidden'\] of the teacher"):
        replace(lesson, match=("hidden",))
    family = EncoderFamily(encoder_space(), 9, 3, max_tokens=8)
    stages = {"distil": Learn(train=FAST, lesson=lesson)}
    with pytest.raises(
        ValueError, match=r"stages.distil.lesson.teacher: the checkpoint .* classifies whole texts, the task digits"
    ):
        check_stages(stages, task=Digits(), family=family, device=Scale())
    check_stages(stages, task=task_of(tmp_path / "teacher"), family=family, device=Scale())
