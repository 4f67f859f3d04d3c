"""Well-known transformers by the names under which tables of measurements list them, with their published sizes.

A plain transformer encoder is a point of our own encoder family, so what it costs is the family's own count of operators: a price
of a device that was fitted on BERT and ViT is a price for the networks of a search. What our encoders have not is added: the
patches of an image (kind `patches`), an output for each token, a factorised embedding, a gated feed-forward.

A model is left out where the sizes alone do not tell its operators: windows, pooling or convolutions between the layers, talking
heads, relative position biases, a mixture of experts, or sizes that the source does not state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nas.encoding import Encoding
from nas.protocols import Operator
from nas.tables import RecordedTable
from nas.types import Workload
from search_spaces.compact import ENCODERS
from search_spaces.encoder import EncoderFamily, encoder_space


@dataclass(frozen=True)
class Published:
    """A transformer as its source describes it.

    Args:
        source: paper or model card, by name.
        tokens: of one input, with `extra_tokens` (class, distillation); 0 if the workload says.
        vocabulary: of the token embedding; 0 for images.
        embedding: its width where that is not `width` (ALBERT).
        patch: numbers in one patch of an image or a video.
        outputs: of the head; 0 for no head.
        head_hidden: width of a dense layer before it; 0 for none.
        every_token: whether the head reads every token or one.
        tied: whether the head's matrix is the embedding's.
        gated: whether the feed-forward has a third matrix.
        shared: whether all layers have the same weights.
        beside: a second network that runs with it on an input of its own (CLIP).
    """

    source: str
    width: int
    depth: int
    heads: int
    ffn: int
    tokens: int = 0
    extra_tokens: int = 0
    vocabulary: int = 0
    positions: int = 0
    embedding: int = 0
    patch: int = 0
    outputs: int = 0
    head_hidden: int = 0
    every_token: bool = False
    tied: bool = False
    gated: bool = False
    shared: bool = False
    beside: Published | None = None

    @property
    def parameters(self) -> float:
        """Weights and biases."""
        return sum(float(op.parameters) for op in operators(self, Workload(tokens=self.tokens or 1)))


@dataclass(frozen=True)
class Match:
    """A row of a table whose network is known, and the workload that it was timed with."""

    row: int
    model: Published
    workload: Workload


BERT = "BERT (Devlin et al., arXiv:1810.04805)"
BERT_BASE = Published(BERT, *ENCODERS["BERT-base"][:4], vocabulary=30522, positions=514, outputs=2, head_hidden=768)
BERT_LARGE = Published(BERT, 1024, 24, 16, 4096, vocabulary=30522, positions=514, outputs=2, head_hidden=1024)
ROBERTA_BASE = replace(BERT_BASE, source="RoBERTa (Liu et al., arXiv:1907.11692)", vocabulary=50265, positions=515)
DISTILBERT = replace(
    BERT_BASE, source="DistilBERT (Sanh et al., arXiv:1910.01108)", depth=ENCODERS["DistilBERT"].depth, positions=512
)  # fmt: skip
ALBERT_BASE = replace(
    BERT_BASE, source="ALBERT (Lan et al., arXiv:1909.11942)", vocabulary=30000, embedding=128, shared=True
)  # fmt: skip
ELECTRA_BASE = replace(BERT_BASE, source="ELECTRA (Clark et al., arXiv:2003.10555)", outputs=1, every_token=True)
MARIAN = Published(
    "OPUS-MT (Tiedemann and Thottingal, EAMT 2020), encoder", 512, 6, 8, 2048, 256, vocabulary=65001, positions=512
)
NOMIC = Published("nomic-embed-text-v1.5 (arXiv:2402.01613)", 768, 12, 12, 3072, 128, vocabulary=30528, gated=True)
GPT2_LARGE = Published("GPT-2 (Radford et al., 2019), 774M", 1280, 36, 20, 5120, vocabulary=50257, positions=1024)
OPT_1_3B = Published("OPT (Zhang et al., arXiv:2205.01068), 1.3B", 2048, 24, 32, 8192, vocabulary=50272, positions=2050)
GPT3_2_7B = Published("GPT-3 (Brown et al., arXiv:2005.14165), 2.7B", 2560, 32, 32, 10240, vocabulary=50257, positions=2048)
VIDEO_MAE = Published(
    "VideoMAE (Tong et al., arXiv:2203.12602), base: 16 frames of 224 in cubes of 2 x 16 x 16",
    768, 12, 12, 3072, tokens=8 * 14 * 14, positions=8 * 14 * 14, patch=3 * 2 * 16 * 16, outputs=400,
)  # fmt: skip
CLIP_TEXT = Published(
    "CLIP (Radford et al., arXiv:2103.00020), text", 512, 12, 8, 2048, tokens=77, vocabulary=49408, positions=77, outputs=512
)

VISION_SIZES = {
    "tiny": (192, 12, 3), "small": (384, 12, 6), "medium": (512, 12, 8), "base": (768, 12, 12), "large": (1024, 24, 16),
}  # fmt: skip
VISION_SOURCES = {
    "vit": "ViT (Dosovitskiy et al., arXiv:2010.11929), as in timm",
    "deit": "DeiT (Touvron et al., arXiv:2012.12877), as in timm",
    "deit3": "DeiT III (Touvron et al., arXiv:2204.07118), as in timm",
    "flexivit": "FlexiViT (Beyer et al., arXiv:2212.08013), as in timm",
    "eva": "EVA (Fang et al., arXiv:2211.07636), as in timm",
}
VISION = re.compile(
    r"(?P<family>vit|deit|deit3|flexivit|eva)_(?P<size>tiny|small|medium|base|large)(?P<distilled>_distilled)?"
    r"(?:_patch(?P<patch>\d+))?(?:_clip)?(?:_\d+)?(?:\.\w+|_in21ft1k)?_(?P<image>\d+)"
)


def vision_transformer(family: str, size: str, *, patch: int, image: int, distilled: bool = False) -> Published:
    """A plain vision transformer: square patches of an image, one class token, feed-forward four times the width, 1000 classes.

    Raises:
        ValueError: an unknown family or size, or a patch larger than the image.
    """
    if family not in VISION_SOURCES or size not in VISION_SIZES:
        raise ValueError(f"{family}, {size}: not one of {tuple(VISION_SOURCES)} and {tuple(VISION_SIZES)}")
    if not 1 <= patch <= image:
        raise ValueError(f"patch: {patch} is not between 1 and the image's {image}")
    width, depth, heads = VISION_SIZES[size]
    extra = 1 + distilled
    tokens = (image // patch) ** 2 + extra
    return Published(
        VISION_SOURCES[family], width, depth, heads, 4 * width, tokens=tokens, extra_tokens=extra, positions=tokens,
        patch=3 * patch**2, outputs=1000 * extra,
    )  # fmt: skip


VIT_BASE = vision_transformer("vit", "base", patch=16, image=224)
CLIP = replace(VIT_BASE, source="CLIP (Radford et al., arXiv:2103.00020), ViT-B/16", outputs=512, beside=CLIP_TEXT)
TROCR_ENCODER = replace(
    vision_transformer("deit", "small", patch=16, image=384, distilled=True),
    source="TrOCR (Li et al., arXiv:2109.10282), small: encoder, keys and values of 6 decoder layers",
    outputs=6 * 2 * 256,
    every_token=True,
)
NAMED: Mapping[str, Published] = {
    # sequences of any length, for classification
    "bert_base_uncased": BERT_BASE,
    "bert_large_uncased": BERT_LARGE,
    "roberta_base": ROBERTA_BASE,
    "distilbert_base_uncased": DISTILBERT,
    "albert_base_v2": ALBERT_BASE,
    # NeuSight: BERT as a classifier of sequences, the others as language models
    "bert_large": BERT_LARGE,
    "gpt2_large": replace(GPT2_LARGE, outputs=50257, every_token=True, tied=True),
    "opt_13": replace(OPT_1_3B, outputs=50272, every_token=True, tied=True),
    "gpt3_27": replace(GPT3_2_7B, outputs=50257, every_token=True, tied=True),
    # Qualcomm AI Hub, with the input lengths and heads of its model definitions
    "albert_base_v2_hf": replace(ALBERT_BASE, tokens=384, outputs=30000, head_hidden=128, every_token=True, tied=True),
    "distil_bert_base_uncased_hf": replace(DISTILBERT, tokens=384, outputs=30522, every_token=True, tied=True),
    "electra_bert_base_discrim_google": replace(ELECTRA_BASE, tokens=384),
    "nomic_embed_text": NOMIC,
    "opus_mt_en_es/OpusMTEncoder": MARIAN,
    "opus_mt_en_zh/OpusMTEncoder": MARIAN,
    "opus_mt_es_en/OpusMTEncoder": MARIAN,
    "opus_mt_zh_en/OpusMTEncoder": MARIAN,
    "openai_clip": CLIP,
    "trocr/TrOCREncoder": TROCR_ENCODER,
    "video_mae": VIDEO_MAE,
    "vit": VIT_BASE,
    # NetsPresso's documentation of its backbones
    "ViT-tiny": vision_transformer("vit", "tiny", patch=16, image=224),
}


def published(label: str) -> Published | None:
    """The model of a table's label; None if its sizes are not known for certain."""
    if label in NAMED:
        return NAMED[label]
    found = VISION.fullmatch(label)
    if not found or not (found["patch"] or found["family"] == "flexivit"):
        return None
    patch, image = int(found["patch"] or 16), int(found["image"])
    return vision_transformer(found["family"], found["size"], patch=patch, image=image, distilled=bool(found["distilled"]))


def match(table: RecordedTable) -> list[Match]:
    """The rows of a table whose networks are known and ran operator by operator: compiled ones (`fused`) are networks of another
    runtime, and would be the same here."""
    column = {name: table.rows[:, i] for i, name in enumerate(table.features)}
    fused = column.get("fused", np.zeros(len(table)))
    found = []
    for row, label in enumerate(table.labels):
        if not fused[row] and (model := published(label)):
            tokens = model.tokens or (int(column["tokens"][row]) if "tokens" in column else 0)
            if tokens:
                batch = int(column["batch"][row]) if "batch" in column else 1
                found.append(Match(row, model, Workload(batch=batch, tokens=tokens)))
    return found


def operators(model: Published, workload: Workload) -> list[Operator]:
    """What a model costs, by the same kinds as `EncoderFamily.operators`; every number is a float, bytes are those of fp32.

    Raises:
        ValueError: a workload with other tokens than the model's own.
    """
    if model.tokens and workload.tokens != model.tokens:
        raise ValueError(f"tokens: {workload.tokens} of the workload are not the model's {model.tokens}")
    space = encoder_space(
        width=(model.width,), depth=(model.depth,), heads=(model.heads,), ffn=(model.ffn,), attention=("full",), name="named"
    )
    family = EncoderFamily(space, 1, 1, workload.tokens, model.width // model.heads)
    encoding = Encoding.of(family.space, [family.space.largest()])
    layers = [_as_floats(op) for op in family.operators(encoding, workload) if op.kind not in ("embedding", "head")]
    if model.shared:
        layers = [replace(op, parameters=op.parameters / model.depth) for op in layers]
    tokens = workload.batch * workload.tokens
    gate = [_matrix("ffn", tokens, model.width, model.ffn, count=0.0)] * (model.depth * model.gated)
    head = _head(model, tokens if model.every_token else workload.batch)
    beside = operators(model.beside, replace(workload, tokens=model.beside.tokens)) if model.beside else []
    return [*_inputs(model, workload), *layers, *gate, *head, *beside]


def _inputs(model: Published, workload: Workload) -> list[Operator]:
    tokens = workload.batch * workload.tokens
    narrow = model.embedding or model.width
    table = (model.vocabulary + model.positions) * narrow + (model.extra_tokens * model.width)
    found = [Operator("embedding", 1.0, 0.0, 8.0 * tokens * narrow, float(table))]
    if model.embedding:
        found.append(_matrix("projections", tokens, narrow, model.width, count=0.25))  # one of a layer's four products
    if model.patch:
        patches = tokens - workload.batch * model.extra_tokens
        found.append(_matrix("patches", patches, model.patch, model.width))
    return found


def _head(model: Published, tokens: int) -> list[Operator]:
    """The last norm, a dense layer if there is one, and the outputs."""
    found = [Operator("head", 0.0, 0.0, 0.0, 2.0 * model.width)]
    if model.head_hidden:
        found.append(_matrix("head", tokens, model.width, model.head_hidden))
    if model.outputs:
        outputs = _matrix("head", tokens, model.head_hidden or model.width, model.outputs)
        found.append(replace(outputs, parameters=0.0) if model.tied else outputs)
    return found


def _matrix(kind: str, tokens: int, inputs: int, outputs: int, *, count: float = 1.0) -> Operator:
    """A dense layer with a bias on so many tokens."""
    bytes_ = 4.0 * (inputs * outputs + tokens * (inputs + outputs))
    return Operator(kind, count, 2.0 * tokens * inputs * outputs, bytes_, float(inputs * outputs + outputs))


def _as_floats(op: Operator) -> Operator:
    numbers = (float(np.sum(value)) for value in (op.count, op.flops, op.bytes, op.parameters))
    return Operator(op.kind, *numbers)
