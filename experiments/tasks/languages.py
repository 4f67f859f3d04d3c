"""Which language is it? The texts are the translation catalogues of one pinned release of Django, read as files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from experiments.tasks.checks import check_at_least
from experiments.tasks.django_source import DJANGO_VERSION, INSTALL, digest, pinned_django
from experiments.tasks.splits import SPLIT_OF_TENTH
from experiments.tasks.text import TextClassification
from experiments.tasks.tokenizing import check_sizes, comparable
from nas.protocols import SPLITS

CATALOGUE = re.compile(r"/locale/([a-z]+)[^/]*/LC_MESSAGES/\w+\.mo$")  # the language without its region or script
SMALLEST_LANGUAGE = 300  # texts


class Translation(NamedTuple):
    """One text, and the English message that it says."""

    language: str
    message: str
    text: str


class Languages(TextClassification):
    """Identification of the language of a short text: 76 languages, 50,204 texts.

    Messages, and not texts, are split (70 % train, 10 % each of the others), so that no message is on two sides. A text that
    several messages share in one language is kept once, with the first of them in alphabetical order; a text that two languages
    share has no answer and is dropped. Texts that differ only in case or spaces are the same.

    `max_examples` keeps the messages whose hash is smallest, as many as have no more texts together. Languages that then have no
    example in one of the four splits are dropped.

    Raises:
        ValueError: a size out of bounds, django or polib not installed, another version of django or one without translations,
            or `max_examples` that leave no two languages.
    """

    def __init__(
        self, *, vocab_size: int = 8000, max_tokens: int = 64, max_examples: int | None = None, tokenizer: str | None = None
    ) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        if max_examples is not None:
            check_at_least(1, max_examples=max_examples)
        examples = identifiable(read_catalogues())
        if max_examples is not None:
            examples = first_messages(examples, max_examples)
        splits = split_by_message(examples)
        if len({label for _, label in splits["train"]}) < 2:
            raise ValueError(f"max_examples: {max_examples} leaves no two languages with examples in all of {SPLITS}")
        super().__init__("languages", splits=splits, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)


def read_catalogues() -> list[Translation]:
    """Every translation of Django's compiled catalogues, which hold none that is marked as obsolete or fuzzy."""
    try:
        import polib

        django = pinned_django("languages")
    except ImportError as error:
        raise ValueError(f"task: 'languages' needs django=={DJANGO_VERSION} and polib; {INSTALL}") from error
    translations = []
    for file in django.files or ():
        if catalogue := CATALOGUE.search(str(file)):
            for entry in polib.mofile(str(file.locate())):
                texts = (entry.msgstr, *entry.msgstr_plural.values())
                translations += [Translation(catalogue[1], entry.msgid, text) for text in texts if text.strip()]
    if not translations:
        raise ValueError(f"django: version {django.version} is installed without its translations; {INSTALL}")
    return translations


def identifiable(translations: Iterable[Translation]) -> list[Translation]:
    """Texts of one language only, each once, in languages other than English that have at least 300 of them; sorted."""
    languages = defaultdict(set)
    first: dict[str, Translation] = {}
    for translation in sorted(translations):
        text = comparable(translation.text)
        languages[text].add(translation.language)
        first.setdefault(text, translation)
    kept = [translation for text, translation in first.items() if len(languages[text]) == 1 and translation.language != "en"]
    sizes = Counter(translation.language for translation in kept)
    return [translation for translation in kept if sizes[translation.language] >= SMALLEST_LANGUAGE]


def first_messages(examples: Sequence[Translation], max_examples: int) -> list[Translation]:
    """The examples of the messages with the smallest hashes, at most `max_examples` in all."""
    sizes = Counter(example.message for example in examples)
    messages = sorted(sizes, key=digest)
    totals = accumulate(sizes[message] for message in messages)
    kept = {message for message, total in zip(messages, totals, strict=True) if total <= max_examples}
    return [example for example in examples if example.message in kept]


def split_by_message(examples: Iterable[Translation]) -> dict[str, list[tuple[str, str]]]:
    """(text, language) pairs by split, without the languages that one of the splits lacks."""
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for example in examples:
        splits[SPLIT_OF_TENTH[int(digest(example.message), 16) % 10]].append((example.text, example.language))
    complete = set.intersection(*({language for _, language in pairs} for pairs in splits.values()))
    return {split: [(text, language) for text, language in pairs if language in complete] for split, pairs in splits.items()}
