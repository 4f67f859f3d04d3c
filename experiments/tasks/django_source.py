"""The files of one pinned release of the package Django (BSD licence), which several tasks are made of; it is never imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

DJANGO_VERSION = "5.2.19"
INSTALL = "pip install 'paretoformer[demo]'"


def pinned_django(task: str) -> Distribution:
    """The files of the installed package. Raises PackageNotFoundError, or ValueError for another version."""
    django = distribution("django")
    if django.version != DJANGO_VERSION:
        raise ValueError(f"django: version {django.version} is not {DJANGO_VERSION}, which {task!r} is made of; {INSTALL}")
    return django


def python_files(task: str) -> Iterator[str]:
    """What is in the Python files of the pinned package, in the order of the hashes of their paths; not those of locales, which
    are copies of each other.

    Raises:
        ValueError: django is not installed, or in another version.
    """
    try:
        django = pinned_django(task)
    except PackageNotFoundError as error:
        raise ValueError(f"task: {task!r} needs django=={DJANGO_VERSION}; {INSTALL}") from error
    paths = {str(file): file for file in django.files or () if file.suffix == ".py" and "locale" not in file.parts}
    return (paths[name].read_text(encoding="utf-8") for name in sorted(paths, key=digest))


def digest(message: str) -> str:
    return hashlib.sha256(message.encode()).hexdigest()
