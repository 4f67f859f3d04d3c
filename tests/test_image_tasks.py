"""Tasks of images and signals: splits that never mix, batches that hold everything once, files, and errors that help."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.build import build
from experiments.config import composed
from experiments.contract import input_of
from experiments.progress import Reporter
from experiments.tasks import images, signals
from experiments.tasks.arrays import ArrayClassification, Arrays, Values
from experiments.tasks.digits import Digits
from experiments.tasks.image_folder import ImageFolder
from experiments.tasks.images import FashionMnist, read_idx
from experiments.tasks.signals import HumanActivity, OnlyArrays, windows
from nas.compute import Compute
from nas.export import export_onnx
from nas.formats import open_session
from nas.protocols import SPLITS
from nas.types import Workload

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def rows(task, split):
    return {x.tobytes() for x in task.split(split).x}


# Shared by all


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_batches_hold_every_example_once(seed):
    part = Values(np.arange(300, dtype=np.uint8).reshape(100, 1, 3), np.arange(100), 16)
    batches = list(part.batches(tokens_per_batch=200, seed=seed))
    assert [len(batch.targets) for batch in batches] == [12] * 8 + [4]
    targets = torch.cat([batch.targets for batch in batches])
    assert sorted(targets.tolist()) == list(range(100))
    assert (targets.tolist() == list(range(100))) == (seed is None)
    assert all(batch.inputs[0].dtype == torch.float32 for batch in batches)
    assert torch.equal(torch.cat([b.inputs[0] for b in batches]), torch.from_numpy(part.x[targets.numpy()].astype(np.float32)))
    with pytest.raises(ValueError, match="tokens_per_batch: 15 is less than the 16 tokens of an example"):
        part.batches(tokens_per_batch=15, seed=None)


def test_digits_are_divided_and_described(digits, tmp_path):
    assert sum(digits.num_examples(split) for split in SPLITS) == 1797
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            assert not rows(digits, one) & rows(digits, other)
    assert digits.fingerprint == Digits().fingerprint
    assert digits.max_tokens == 64
    x = digits.split("train").x.astype(float)
    assert digits.sizes == {"input_shape": (1, 8, 8), "num_classes": 10, "mean": (x.mean(),), "std": (pytest.approx(x.std()),)}
    assert "[batch, 1, 8, 8]" in digits.interface
    digits.save_preprocessing(tmp_path)
    assert json.loads((tmp_path / "labels.json").read_text()) == list("0123456789")
    baselines = digits.trivial_baselines()
    assert baselines["raw values, logistic regression"] < 8 < 85 < baselines["majority class"]


def test_the_file_takes_raw_values(digits, tmp_path):
    """What a user feeds: numbers from 0 to 16, by the input's name."""
    family = pipeline(tmp_path, "task=digits", "space=vision_tiny").family
    network = family.network(family.space.smallest(), backend="blocks").eval()
    export_onnx(network, family.example_input(Workload(tokens=digits.max_tokens)), tmp_path / "m.onnx")
    raw = digits.split("test").x[:7].astype(np.float32)
    [logits] = open_session(tmp_path / "m.onnx").run(None, {"image": raw})
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(torch.from_numpy(raw)).numpy(), atol=1e-5)


def test_the_contract_says_what_goes_in(digits, tmp_path):
    made = pipeline(tmp_path, "task=digits", "space=vision_tiny")
    given = input_of(made.finisher(Compute()), tmp_path)
    shape = {"kind": "values", "name": "image", "shape": [1, 8, 8], "pictures": False}  # a picture goes up to 255, a digit to 16
    assert given == {**shape, "answer": "label", "description": digits.interface}


def pipeline(tmp_path, *words):
    return build(composed(*words, f"run={tmp_path / 'run'}", f"store={tmp_path / 'store'}"), report=Reporter(quiet=True))


def test_spaces_of_another_kind_are_refused(tmp_path):
    message = "digits does not go with the space encoder; it gives input_shape, num_classes, mean, std and needs space=vision,"
    with pytest.raises(ValueError, match=message):
        pipeline(tmp_path, "task=digits", "space=encoder")
    with pytest.raises(
        ValueError, match="the space vision; it gives vocab_size, num_classes, max_tokens and needs space=encoder or"
    ):
        pipeline(tmp_path, "space=vision", "task.max_examples=3000")
    with pytest.raises(
        ValueError,
        match=r"patch: 7 does not divide the input of 8 x 8 \(1 channels, which come first\); allowed are \[1, 2, 4, 8\]",
    ):
        pipeline(tmp_path, "task=digits", "space=vision")
    with pytest.raises(ValueError, match="tokens: 5 of the workload are not the 64 positions of 8 x 8"):
        pipeline(tmp_path, "experiment=digits", "tokens=5")


def test_a_constant_channel_is_left_alone():
    x = np.concatenate([RNG.normal(3, 2, (40, 1, 8)), np.full((40, 1, 8), 7.0)], axis=1).astype(np.float32)
    task = ArrayClassification(
        "t", splits={s: (x, np.arange(40) % 2) for s in SPLITS}, labels=("a", "b"), tokens_per_example=8, values="numbers"
    )
    assert task.std[1] == 1.0
    assert task.mean[1] == 7.0


# Arrays of one's own


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24)])
@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_arrays_of_ones_own(tmp_path, shape, kind):
    y = np.arange(60) % 3
    y = y if kind == "integers" else np.array(["ant", "bee", "cat"])[y]
    task = Arrays(save(tmp_path / "mine.npz", x=RNG.normal(size=(60, *shape)), y=y))
    assert task.name == "mine"
    assert task.labels == (("0", "1", "2") if kind == "integers" else ("ant", "bee", "cat"))
    assert [task.num_examples(split) for split in SPLITS] == [42, 6, 6, 6]
    assert task.sizes["input_shape"] == shape


def test_equal_examples_are_in_one_split(tmp_path):
    x = np.repeat(RNG.normal(size=(40, 1, 8)), 3, axis=0)
    task = Arrays(save(tmp_path / "mine.npz", x=x, y=np.repeat(np.arange(40) % 2, 3)))
    found = [rows(task, split) for split in SPLITS]
    assert sum(map(len, found)) == len(set.union(*found)) == 40


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((8, 4, 4))}, r"holds \['x'\] and no 'y'"),
        ({"x": np.zeros((8, 16)), "y": np.arange(8)}, r"x: shape \(8, 16\) is not \[N, channels, height, width\]"),
        ({"x": np.zeros((8, 0, 4)), "y": np.arange(8)}, r"x: shape \(8, 0, 4\)"),
        ({"x": np.full((8, 1, 4), "a"), "y": np.arange(8)}, "x: values of type <U1 are not numbers"),
        ({"x": np.where(np.arange(32) == 20, np.nan, 1.0).reshape(8, 1, 4), "y": np.arange(8)}, "x: example 5 is not finite"),
        ({"x": np.zeros((8, 1, 4)), "y": np.arange(7)}, r"y: int64 of shape \(7,\) are not 8 classes"),
        ({"x": np.zeros((8, 1, 4)), "y": np.linspace(0, 1, 8)}, "y: float64"),
        ({"x": np.zeros((8, 1, 4)), "y": np.zeros(8, int)}, r"labels: \('0',\) are fewer than 2 classes"),
        ({"x": np.zeros((8, 1, 4)), "y": np.arange(8) % 2}, "class '0' has 1 distinct examples, fewer than 4"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        Arrays(save(tmp_path / "bad.npz", **arrays))


def test_bad_array_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path: '.*none.npz' is not a file"):
        Arrays(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(ValueError, match=r"is not an \.npz file; numpy\.savez\(FILE, x=…, y=…\) writes one"):
            Arrays(tmp_path / name)
    with pytest.raises(ValueError, match=r"is not an \.npz file of plain arrays \(Object arrays"):
        Arrays(save(tmp_path / "objects.npz", x=np.array([{}]), y=np.arange(1)))
    with pytest.raises(ValueError, match=r"test_fraction: 0.9 is not more than 0"):
        Arrays(tmp_path / "none.npz", test_fraction=0.9)


# A folder of images


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cats", 0), ("dogs", 128)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            values = (RNG.integers(0, 100, (12, 16, 3)) + colour).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / "pets" / name / f"{i}.{'png' if i % 2 else 'JPG'}")
    (tmp_path / "pets" / "cats" / "notes.txt").write_text("not an image")
    return tmp_path / "pets"


@pytest.mark.parametrize(
    ("changes", "shape"), [({}, (3, 28, 28)), ({"size": 8, "colours": "grey"}, (1, 8, 8)), ({"size": None}, (3, 12, 16))]
)
def test_images_of_ones_own(folder, changes, shape):
    task = ImageFolder(folder, **changes)
    assert task.pictures
    assert (task.name, task.labels, task.sizes["input_shape"]) == ("pets", ("cats", "dogs"), shape)
    assert [task.num_examples(split) for split in SPLITS] == [14, 2, 2, 2]
    x, y = task.split("train").x, task.split("train").targets
    assert x.dtype == np.uint8
    assert x[y == 0].mean() < 60 < 150 < x[y == 1].mean()


def test_bad_image_folders_are_refused(folder):
    with pytest.raises(ValueError, match="colours: 'blue' is not one of"):
        ImageFolder(folder, colours="blue")
    with pytest.raises(ValueError, match="size: 0 is not an integer of at least 1"):
        ImageFolder(folder, size=0)
    with pytest.raises(ValueError, match=r"path: '.*none' is not a folder"):
        ImageFolder(folder / "none")
    with pytest.raises(ValueError, match=r"has the subfolders \[\], fewer than 2 classes"):
        ImageFolder(folder / "cats")
    (folder / "owls").mkdir()
    with pytest.raises(ValueError, match=r"owls has no files that end in \.png, \.jpg, \.jpeg"):
        ImageFolder(folder)
    (folder / "owls").rmdir()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "dogs" / "small.png")
    with pytest.raises(ValueError, match=r"size: .*0.JPG is 16 x 12 and .*small.png is 5 x 5; give a size"):
        ImageFolder(folder, size=None)
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(folder / "dogs" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png cannot be read as an image .*more than 8 bits"):
        ImageFolder(folder)
    (folder / "dogs" / "deep.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"deep.png cannot be read as an image"):
        ImageFolder(folder)


# Fashion-MNIST


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder in the format of the four files, with other contents."""
    for name in images.SHA256:
        count = 200 if name.startswith("train") else 50
        array = RNG.integers(0, 256, (count, 28, 28)) if "images" in name else np.arange(count) % 10
        (tmp_path / name).write_bytes(idx(array))
        monkeypatch.setitem(images.SHA256, name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    return tmp_path


def test_fashion_mnist_keeps_the_official_test_images(fashion):
    task = FashionMnist(fashion)
    assert [task.num_examples(split) for split in SPLITS] == [160, 20, 20, 50]
    assert task.labels == images.LABELS
    assert task.sizes["input_shape"] == (1, 28, 28)
    assert [FashionMnist(fashion, max_examples=100).num_examples(split) for split in SPLITS] == [80, 10, 10, 50]


def test_other_files_than_fashion_mnist_are_refused(fashion, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    digest = images.SHA256[path.name]
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has the checksum \w{12}…, expected is"):
        FashionMnist(fashion)
    path.unlink()
    with pytest.raises(ValueError, match="is not a file; the four files are in the Debian package dataset-fashion-mnist"):
        read_idx(path, digest)
    for broken in (b"no gzip", content[:-100], gzip.compress(b"\0\0\x08\x03"), gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"is not a gzip file|is not an idx file of bytes"):
            read_idx(path, hashlib.sha256(broken).hexdigest())


# Signals


def test_windows_lie_within_one_activity():
    activity = np.array([-1] * 3 + [2] * 10 + [1] * 3 + [-1] * 20 + [3] * 4)
    found = windows(np.tile(np.arange(40.0), (6, 1)), activity, length=4, step=2)
    assert [(int(x[0, 0]), y) for x, y in found] == [(3, 1), (5, 1), (7, 1), (9, 1), (36, 2)]
    assert all(x.shape == (6, 4) and x.dtype == np.float32 for x, _ in found)


def test_people_are_in_one_split_each(monkeypatch, tmp_path):
    def recordings(path):
        for person in range(1, 31):
            yield person, np.full((6, 120), float(person)), np.repeat(np.arange(1, 13), 10)

    monkeypatch.setattr(signals, "recordings", recordings)
    task = HumanActivity(tmp_path, length=10, step=5)
    people = {split: set(task.split(split).x[:, 0, 0].astype(int).tolist()) for split in SPLITS}
    assert {split: people[split] for split in signals.PEOPLE} == {split: set(p) for split, p in signals.PEOPLE.items()}
    assert len(people["train"]) == 15
    assert task.sizes["input_shape"] == (6, 10)
    with pytest.raises(ValueError, match="length: 11 leaves no window in 'train'"):
        HumanActivity(tmp_path, length=11)


def test_only_the_known_file_of_signals_is_opened(tmp_path):
    with pytest.raises(ValueError, match=r"path: '.*none' is not a file"):
        HumanActivity(tmp_path / "none")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"other.tar.gz has the checksum"):
        HumanActivity(tmp_path / "other.tar.gz")


def test_the_pickle_of_signals_calls_nothing():
    evil = b"cos\nsystem\n(S'true'\ntR."
    with pytest.raises(ValueError, match=r"the file asks for os.system, which it has no need of"):
        OnlyArrays(io.BytesIO(evil), fix_imports=False).load()
    with pytest.raises(ValueError, match=r"builtins.eval"):
        OnlyArrays(io.BytesIO(pickle.dumps(eval)), fix_imports=False).load()
