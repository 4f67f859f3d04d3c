#!/usr/bin/env python3
"""Answers by the exported network beside this file, one JSON line an input. Needs onnxruntime, numpy and, for texts, tokenizers.

    python predict.py "a text" "another one"       python predict.py < texts.txt        texts: UTF-8, one a line
    python predict.py picture.npy                   python predict.py < arrays.jsonl     images, signals, token ids: JSON arrays
    python predict.py "def " --tokens 100           language models: the text goes on

contract.json says which file answers, how it is opened and what it was measured to do. What is read of a file is compared with
its checksum first, the contract with its own; --check does so with every file of the folder. An input that cannot be answered
has a line with its "error", and the exit code is 1; it is 2 if nothing can be answered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CPU = "CPUExecutionProvider"
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
PICTURES = (".png", ".jpg", ".jpeg")
DEEP = ("I", "I;16", "I;16B", "F")  # pictures of more than 8 bits a channel, which no network has learned from


class Refused(ValueError):  # noqa: N818 - what is said to a person
    """What is wrong with an input, or with the folder, in words."""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="what is answered; without any, the lines of stdin")
    parser.add_argument("--within", metavar="8ms", help="the most accurate network that takes at most so long in quiet moments")
    parser.add_argument("--network", metavar="NAME", help="one of the networks by its name or id")
    parser.add_argument("--at-once", action="store_true", help="the smallest network answers until the best one is loaded")
    parser.add_argument("--check", action="store_true", help="only whether every file of the folder is as it was exported")
    parser.add_argument("--top", type=int, default=1, help="how many classes are named (1)")
    parser.add_argument("--tokens", type=int, default=100, help="language models: how many tokens are added (100)")
    parser.add_argument("--temperature", type=float, default=0.0, help="language models: 0 takes the most probable token (0)")
    parser.add_argument("--seed", type=int, default=0, help="language models: of the tokens that are drawn (0)")
    options = parser.parse_args(words)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        check_options(options)
        folder = Path(__file__).resolve().parent
        if options.check:
            print(f"{check_files(folder)} files are as they were exported")
            return 0
        answers = Predictor(folder, options)
    except Refused as refused:
        print(f"predict.py: {refused}", file=sys.stderr)
        return 2
    code = 0
    try:
        for number, given in enumerate(map(os.fsencode, options.inputs) if options.inputs else lines(sys.stdin.buffer), 1):
            if options.inputs and answers.input["kind"] in ("text", "language model") and os.path.isfile(given):
                name = os.fsdecode(given)
                print(f"predict.py: {name} is read as a text, though it is a file's name; its lines: < {name}", file=sys.stderr)
            try:
                for answer in answers(given):
                    print(json.dumps(answer, ensure_ascii=False), flush=True)
            except Refused as refused:
                code = 1
                print(json.dumps({"error": f"input {number} {refused}"}, ensure_ascii=False), flush=True)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"predict.py: answers cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    if (missed := answers.loading()) is not None:
        code = 1
        print(f"predict.py: {missed}; {answers.network['id']} answered", file=sys.stderr)
    return code


def check_options(options: argparse.Namespace) -> None:
    if sys.stdout is None:
        raise Refused("stdout is closed, so answers cannot be written")
    if sys.stdin is None and not (options.inputs or options.check):
        raise Refused("there is no input, and stdin is closed")
    for name in ("top", "tokens"):
        if getattr(options, name) < 1:
            raise Refused(f"--{name}: {getattr(options, name)} is not at least 1")
    for name in ("temperature", "seed"):
        if not getattr(options, name) >= 0:
            raise Refused(f"--{name}: {getattr(options, name)} is not 0 or more")


def lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    return (line.rstrip(b"\r\n") for line in stream)


# ---- the folder --------------------------------------------------------------------------------------------------------------


def read_contract(folder: Path) -> dict[str, Any]:
    try:
        contract: dict[str, Any] = dict(json.loads((folder / "contract.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise Refused(f"contract.json: is missing or damaged ({said(error)})") from error
    if contract.get("sha256") != checksum_of(contract):
        raise Refused("contract.json: is not the one that was exported, its checksum differs from its own sha256")
    return contract


def checksum_of(contract: Mapping[str, Any]) -> str:
    """Of all that a contract says but for its own `sha256`."""
    rest = {name: value for name, value in contract.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path) -> int:
    """How many files there are, all as they were exported."""
    contract = read_contract(folder)
    for name in contract["files"]:
        checked(folder, contract, name)
    return 1 + len(contract["files"])


def checked(folder: Path, contract: Mapping[str, Any], name: str, part: Mapping[str, Any] | None = None) -> Path:
    """The path of a file that is the one that was exported, or of which the part is that it begins with."""
    path = folder / name
    if not path.is_file():
        raise Refused(f"{name}: is missing from {folder}")
    digest, left = hashlib.sha256(), part["bytes"] if part else path.stat().st_size
    try:
        with path.open("rb") as file:
            while block := file.read(min(left, 2**20)):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise Refused(f"{name}: cannot be read ({said(error)})") from error
    if digest.hexdigest() != (part or contract["files"].get(name, {})).get("sha256"):
        raise Refused(f"{name}: is not the file that was exported, its checksum differs from the one in contract.json")
    return path


def chosen(contract: Mapping[str, Any], *, within: str | None, name: str | None) -> list[dict[str, Any]]:
    """The networks that a person allows, the one with the lowest validation error first."""
    networks: list[dict[str, Any]] = contract["networks"]
    if name is not None:
        networks = [n for n in networks if name in (n["id"], *n["names"])]
        if not networks:
            known = ", ".join(word for n in contract["networks"] for word in (*n["names"], n["id"]))
            raise Refused(f"--network: {name!r} is not one of {known}")
    if within is not None:
        try:
            within_ms = float(within.strip().removesuffix("ms"))
        except ValueError:
            raise Refused(f"--within: {within!r} is no time like 8ms") from None
        timed = [n for n in networks if n["latency_ms"]]
        if not timed:
            raise Refused("--within: no latency was measured, contract.json has only predictions")
        statistic = contract["judged_by"]  # as budgets are
        networks = [n for n in timed if n["latency_ms"][statistic] <= within_ms]
        if not networks:
            fastest = min(n["latency_ms"][statistic] for n in timed)
            raise Refused(
                f"--within: no network answers within {within_ms:g} ms, the fastest takes {fastest:.4g} ms ({statistic})"
            )
    return sorted(networks, key=lambda n: n["validation_error_percent"])


def part_of(contract: Mapping[str, Any], network: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The beginning of a file of weights that a network needs, if it lies there with others."""
    shared = contract.get("shared_weights")
    part: dict[str, Any] | None = shared["parts"].get(network["answers"]) if shared and shared["file"] == name else None
    return part


def open_session(path: Path, run: Mapping[str, Any]) -> onnxruntime.InferenceSession:
    """As it was tuned on the device; where its execution provider is not, on the CPU, which is said."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(run["threads"], os.cpu_count() or 1)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[run["graph_optimization"]])
    options.log_severity_level = 4  # errors are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    if run["provider"] not in available:
        print(f"predict.py: {run['provider']} is not on this machine; {CPU} answers", file=sys.stderr)
    providers = [provider for provider in dict.fromkeys((run["provider"], CPU)) if provider in available]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own have no base class of their own
        raise Refused(f"{path.name}: ONNX Runtime cannot open it ({said(error)})") from error


# ---- answers -----------------------------------------------------------------------------------------------------------------


class Predictor:
    """Bytes of one input, as it was given, to its answers."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        contract = read_contract(folder)
        if contract["format"] != "onnx":
            raise Refused(f"contract.json: this folder holds the format {contract['format']}, ONNX Runtime runs onnx")
        self.folder, self.contract, self.options, self.input = folder, contract, options, contract["input"]
        networks = chosen(contract, within=options.within, name=options.network)
        first = min(networks, key=self.bytes_of) if options.at_once else networks[0]
        self.network, self.session = self.loaded = first, self.opened(first)
        if self.input["kind"] in ("text", "language model"):
            self.tokenizer = read_tokenizer(checked(folder, contract, "tokenizer.json"))
        if self.input["kind"] != "language model":
            name = "target.json" if self.input["answer"] == "number" else "labels.json"
            self.meaning: Any = json.loads(checked(folder, contract, name).read_text(encoding="utf-8"))
        self.refused: Refused | None = None
        self.loader = threading.Thread(target=self.load, args=(networks[0],))
        if networks[0] is not first:
            self.loader.start()

    def bytes_of(self, network: Mapping[str, Any]) -> int:
        """What is read to open it."""
        return sum((part_of(self.contract, network, n) or self.contract["files"][n])["bytes"] for n in network["files"])

    def opened(self, network: Mapping[str, Any]) -> onnxruntime.InferenceSession:
        names = network["files"]
        paths = {name: checked(self.folder, self.contract, name, part_of(self.contract, network, name)) for name in names}
        return open_session(paths[network["answers"]], network["run"])

    def load(self, network: dict[str, Any]) -> None:
        """Lets a network answer from the next input on."""
        try:
            self.loaded = network, self.opened(network)
        except Refused as refused:
            self.refused = refused

    def loading(self) -> Refused | None:
        """Waits for the network that is being loaded; why it cannot be, if so."""
        if self.loader.ident is not None:
            self.loader.join()
        return self.refused

    def __call__(self, given: bytes) -> Iterator[dict[str, Any]]:
        self.network, self.session = self.loaded
        said_by = {"network": self.network["id"]} if self.options.at_once else {}
        return ({**answer, **said_by} for answer in self.answered(given))

    def answered(self, given: bytes) -> Iterator[dict[str, Any]]:
        if self.input["kind"] == "text":
            yield self.of_text(given)
        elif self.input["kind"] == "language model":
            yield self.continuation(given)
        elif self.input["kind"] == "token ids":
            yield self.of_ids(given)
        else:
            for values in self.examples(given):
                yield self.meant(self.logits({self.input["name"]: values[None]}))

    def of_text(self, given: bytes) -> dict[str, Any]:
        words, tagged = text_of(given).split(), self.input["answer"] == "tags"
        encoding = self.tokenizer.encode(words, is_pretokenized=True) if tagged else self.tokenizer.encode(text_of(given))
        if not words or not encoding.ids:
            raise Refused("is empty")
        logits = self.logits(tokens(encoding.ids))
        answer = self.tags(logits, words, encoding.word_ids) if tagged else self.meant(logits)
        return {**answer, "tokens": len(encoding.ids), "cut": bool(encoding.overflowing)}

    def tags(self, logits: np.ndarray, words: Sequence[str], word_ids: Sequence[int | None]) -> dict[str, Any]:
        """The tag of each word, which its first token says."""
        first = {word: token for token, word in reversed(list(enumerate(word_ids))) if word is not None}
        return {"tags": [[words[word], self.meaning[int(logits[token].argmax())]] for word, token in sorted(first.items())]}

    def of_ids(self, given: bytes) -> dict[str, Any]:
        ids, most, below = array_of(given), self.input["max_tokens"], self.input["num_ids"]
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not 1 <= len(ids) <= most:
            raise Refused(f"is {ids.dtype} of shape {ids.shape}, and not a row of 1 to {most} token ids")
        if ids.min() < 0 or ids.max() >= below:
            raise Refused(f"holds the token id {ids[(ids < 0) | (ids >= below)][0]}, which is not in 0 to {below - 1}")
        return self.meant(self.logits(tokens(ids.tolist())))

    def continuation(self, given: bytes) -> dict[str, Any]:
        longest = self.input["max_tokens"]
        self.tokenizer.no_truncation()
        ids = self.tokenizer.encode(text_of(given)).ids
        if not ids:
            raise Refused("is empty: there is no token to go on from")
        options = self.options
        more = continued(Decoder(self.session), ids, longest=longest, temperature=options.temperature, seed=options.seed)
        text = self.tokenizer.decode([*ids, *(next(more) for _ in range(options.tokens))])
        return {"text": text, "tokens": len(ids), "cut": len(ids) > longest}

    def examples(self, given: bytes) -> Iterator[np.ndarray]:
        """One example, or those of a file that holds several, float32 in the shape that the network takes."""
        shape = tuple(self.input["shape"])
        path = Path(os.fsdecode(given))
        is_picture = path.suffix.lower() in PICTURES
        if is_picture and not self.input["pictures"]:
            raise Refused("is a picture, with values from 0 to 255; contract.json says which values this network takes, as .npy")
        values = picture(path, shape) if is_picture else array_of(given)
        if values.shape not in (shape, (len(values) if values.ndim else 0, *shape)):
            raise Refused(f"has the shape {values.shape}, the network takes {shape}")
        if not values.size:
            raise Refused("holds no example")
        if np.iscomplexobj(values):
            raise Refused("holds complex numbers, the network takes real ones")
        if not np.issubdtype(values.dtype, np.number):
            raise Refused(f"holds values of the type {values.dtype}, the network takes numbers")
        if not np.isfinite(values).all():
            raise Refused("holds what is no finite number")
        largest = np.finfo(np.float32).max
        if values.max() > largest or values.min() < -largest:
            raise Refused(f"holds a number beyond those of float32 (up to {largest:.1e})")
        yield from values.astype(np.float32).reshape(-1, *shape)

    def logits(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of one example, [classes]."""
        try:
            answer: np.ndarray = self.session.run(None, dict(inputs))[0][0]
        except Exception as error:  # its own have no base class of their own
            raise Refused(f"is refused by ONNX Runtime ({said(error)})") from error
        return finite(answer)

    def meant(self, logits: np.ndarray) -> dict[str, Any]:
        """The number, or the most probable labels."""
        if self.input["answer"] == "number":
            return {"number": round(self.meaning["mean"] + self.meaning["std"] * float(logits[0]), 6)}
        weights = np.exp(logits.astype(np.float64) - logits.max())
        shares = weights / weights.sum()
        best = np.argsort(-shares, kind="stable")[: self.options.top]
        ranked = [{"label": self.meaning[i], "probability": round(float(shares[i]), 6)} for i in best]
        return ranked[0] if len(ranked) == 1 else {**ranked[0], "top": ranked}


def finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise Refused("is answered with numbers that are not finite")
    return logits


def read_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise Refused("tokenizers is not installed: pip install tokenizers") from None
    return Tokenizer.from_file(str(path))


def text_of(given: bytes) -> str:
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"is not valid UTF-8 (byte {error.start})") from None


def tokens(ids: Sequence[int]) -> dict[str, np.ndarray]:
    return {"token_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}


def array_of(given: bytes) -> np.ndarray:
    """A JSON array, or an .npy file by its path."""
    text = text_of(given)
    if not text.strip():
        raise Refused("is empty")
    try:
        if text.lstrip().startswith("["):
            return np.asarray(json.loads(text))
        with open(text, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as error:
        raise Refused(f"is neither a JSON array nor an .npy file ({said(error)})") from None


def picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Values from 0 to 255, [channels, height, width], resized (bilinear) if the picture has another size."""
    try:
        from PIL import Image
    except ImportError:
        raise Refused("is a picture; pip install Pillow, or give its values as an .npy file") from None
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            if file.mode in DEEP:
                raise ValueError(f"mode {file.mode} holds more than 8 bits a channel")
            image = file.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"cannot be read as a picture ({said(error)})") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def said(error: BaseException) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# ---- language models ---------------------------------------------------------------------------------------------------------


class Decoder:
    """A `decode.onnx` with its cache of keys and values, for one sequence."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.caches = [node for node in self.session.get_inputs() if node.name.startswith("past_key_values.")]
        self.forget()

    def forget(self) -> None:
        """Begins a text."""
        self.position = 0
        self.past = [np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in self.caches]

    def read(self, token: int) -> np.ndarray:
        """Reads the next token; logits of the one after it, [words]."""
        feed = {"token_ids": np.array([[token]]), "position_ids": np.array([[self.position]])}
        feed.update(zip((node.name for node in self.caches), self.past, strict=True))
        logits, *self.past = self.session.run(None, feed)
        self.position += 1
        return finite(logits[0, 0])


def continued(decoder: Decoder, ids: Sequence[int], *, longest: int, temperature: float, seed: int) -> Iterator[int]:
    """Endless next tokens. When all positions are taken, the later half of the text is read again from the first position on."""
    rng = np.random.default_rng(seed)
    text, unread = list(ids), list(ids)[-longest:]
    while True:
        if decoder.position + len(unread) > longest:
            decoder.forget()
            unread = text[-max(1, longest // 2) :]
        for token in unread:
            logits = decoder.read(token)
        token = draw(logits, temperature, rng)
        text.append(token)
        unread = [token]
        yield token


def draw(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """A token by its probability, the logits divided by the temperature, or the most probable one."""
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # what is infinitely less probable than another has no chance
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


if __name__ == "__main__":
    sys.exit(main())
