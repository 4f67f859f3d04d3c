"""The user's own texts in any kind of file, and the errors that name what is wrong in one."""

import json
import sys

import numpy as np
import pytest
import torch

from experiments.tasks.own_text import NumberTable, TagTable, TextTable
from experiments.tasks.tables import READERS
from nas.protocols import IGNORED, SPLITS

ROWS = [(f"{word} {i}", word) for word in ("unus", "duo") for i in range(20)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_of(rows, header):
    return "".join(",".join(map(str, row)) + "\n" for row in [header, *rows])


def jsonl_of(rows, header):
    return "".join(json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False) + "\n\n" for row in rows)


def parquet_of(rows, header):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), sink)
    return sink.getvalue().to_pybytes()


KINDS = [("a.csv", csv_of), ("a.jsonl", jsonl_of), ("a.parquet", parquet_of)]


@pytest.mark.parametrize(("name", "content"), KINDS)
def test_every_kind_of_file_gives_the_same_task(tmp_path, name, content):
    task = TextTable(write(tmp_path / name, content(ROWS, ("body", "kind"))), text="body", label="kind")
    plain = TextTable(write(tmp_path / "plain.tsv", csv_of(ROWS, ("body", "kind"))), text="body", label="kind")
    assert task.fingerprint == plain.fingerprint
    assert [task.num_examples(split) for split in SPLITS] == [28, 4, 4, 4]


@pytest.mark.parametrize(("name", "content"), KINDS)
def test_numbers_of_every_kind_of_file(tmp_path, name, content):
    rows = [(f"text {i}", i / 4) for i in range(40)]
    task = NumberTable(write(tmp_path / name, content(rows, ("body", "price"))), text="body", number="price")
    targets = np.concatenate([task.split(split).targets for split in SPLITS])
    assert sorted(np.round(targets * task.std + task.mean, 4).tolist()) == [i / 4 for i in range(40)]
    assert task.unit == "price"


@pytest.mark.parametrize("kind", ["conll", "csv", "jsonl", "parquet"])
def test_tags_of_every_kind_of_file(tmp_path, kind):
    rows = [([f"w{i}", "in", "Rome"], ["O", "O", "B-LOC"]) for i in range(40)]
    if kind == "conll":
        lines = ["-DOCSTART- -X- O", ""]
        for words, tags in rows:
            lines += ["# a comment", *(f"{word}\tX {tag}" for word, tag in zip(words, tags, strict=True)), ""]
        content, columns = "\r\n".join(lines[:-1]), ("1", "-1")
    else:
        joined = [tuple(" ".join(part) for part in row) for row in rows]
        make = {"csv": csv_of, "jsonl": jsonl_of, "parquet": parquet_of}[kind]
        content, columns = make(joined if kind == "csv" else rows, ("words", "tags")), ("words", "tags")
    task = TagTable(write(tmp_path / f"a.{kind}", content), words=columns[0], tags=columns[1], vocab_size=64)
    assert task.labels == ("B-LOC", "O")
    targets = torch.cat([t.flatten() for s in SPLITS for _, t in task.batches(s, tokens_per_batch=10**4, seed=None)])
    assert targets[targets != IGNORED].bincount().tolist() == [40, 80]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.xlsx", b"", r"path: .*a.xlsx does not end in one of \.csv, \.tsv, .*\.conll, \.iob"),
        (
            "a.jsonl",
            '{"body": "x", "kind": "y"}\n{"body": "x"}\n',
            "label: 'kind' is not one of the columns .* of line 2 of .*",
        ),
        ("a.jsonl", '{"body": "x"\n', r"path: line 1 of .*a.jsonl is not JSON \(.*\)"),
        ("a.jsonl", "[1]\n", "path: line 1 of .*a.jsonl is not a JSON object"),
        ("a.jsonl", '\n{"body": null, "kind": "y"}\n', "path: line 2 of .*a.jsonl has nothing in column 'body'"),
        ("a.jsonl", '{"body": 3, "kind": "y"}\n', "path: line 1 of .*a.jsonl has 3 in column 'body', which is not a text"),
        ("a.jsonl", '{"body": "x", "kind": 1.5}\n', "path: line 1 of .*a.jsonl has 1.5 in column 'kind', which is not a text"),
        ("a.jsonl", b'{"body": "caf\xe9", "kind": "y"}\n', r"path: .*a.jsonl is not UTF-8 text \(byte 13\)"),
        ("a.jsonl", "\n", "path: .*a.jsonl has no rows"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        TextTable(write(tmp_path / name, content), text="body", label="kind")


def test_broken_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ValueError, match=r"^path: .*a.parquet is not a Parquet file \(.*\)$"):
        TextTable(write(tmp_path / "a.parquet", b"nothing of the kind"), text="body", label="kind")
    with pytest.raises(ValueError, match=r"^label: 'kind' is not one of the columns \['body', 'class'\] of .*a.parquet$"):
        TextTable(write(tmp_path / "a.parquet", parquet_of(ROWS, ("body", "class"))), text="body", label="kind")
    with pytest.raises(ValueError, match=r"^path: '.*none.parquet' is not a file$"):
        TextTable(tmp_path / "none.parquet", text="body", label="kind")


def test_parquet_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"^path: .* is Parquet, which pyarrow reads; pip install 'paretoformer\[parquet\]'$"):
        TextTable(write(tmp_path / "a.parquet", b""), text="body", label="kind")


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_missing_files_of_every_kind_are_refused(tmp_path, suffix):
    if suffix in (".parquet", ".pq"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ValueError, match=rf"^path: '.*none{suffix}' is not a file$"):
        TextTable(tmp_path / f"none{suffix}", text="1", label="2")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "1"), ("b", "many")], "path: row 3 of .* has 'many' in column 'price', which is not a number"),
        ([("a", "nan")], "path: row 2 of .* has 'nan' in column 'price', which is not a number"),
        ([("a", "1"), ("A", "2"), ("b", "3")], "path: .* has 2 distinct texts, fewer than 4, one for each split"),
        ([(f"a{i}", "7") for i in range(9)], "numbers: all of 'train' are 7, there is nothing to learn"),
    ],
)
def test_columns_without_numbers_are_refused(tmp_path, rows, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        NumberTable(write(tmp_path / "a.csv", csv_of(rows, ("body", "price"))), text="body", number="price")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "a X\nb\n", "path: line 2 of .*a.conll has 1 fields, line 1 has 2"),
        ("a.conll", "a X\n", "tags: '3' is not one of the columns ['1', '2', '-1'] of "),
        ("a.csv", "1,3\na b,X\n", "path: row 2 of .*a.csv has 2 words and 1 tags"),
        ("a.jsonl", '{"1": ["a", 7], "3": ["X", "Y"]}\n', "has ['a', 7] in column '1', which are not words"),
        ("a.jsonl", '{"1": [], "3": []}\n', "path: line 1 of .*a.jsonl has nothing in column '1'"),
        ("a.conll", "a X X\n\n" * 9, "has 1 distinct texts, fewer than 4, one for each split"),
        ("a.csv", csv_of([(f"a{i} b", "X X") for i in range(9)], "13"), "labels: ('X',) are fewer than 2 classes"),
        ("a.csv", csv_of([(f"a{i} b", f"X Y{i}") for i in range(9)], "13"), "labels: class '.*' has no examples in 'train'"),
    ],
)
def test_sentences_without_tags_are_refused(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]").replace("(", r"\(").replace(")", r"\)")):
        TagTable(write(tmp_path / name, content), words="1", tags="3")


def test_equal_sentences_are_in_one_split(tmp_path):
    rows = [(f"a{i % 30} b", "X Y") for i in range(90)]
    task = TagTable(write(tmp_path / "a.csv", csv_of(rows, ("w", "t"))), words="w", tags="t", vocab_size=64)
    assert [task.num_examples(split) for split in SPLITS] == [63, 9, 9, 9]
