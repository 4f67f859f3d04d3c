"""`NAME=VALUE` words of the small commands, checked against a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Schema = TypeVar("Schema")


def parse(schema: type[Schema], words: Sequence[str]) -> Schema:
    """The schema's values as the words give them.

    Raises:
        ValueError: a word that is not NAME=VALUE, an unknown name, a value of another type, or a missing one.
    """
    base = OmegaConf.structured(schema)
    names = [str(name) for name in base]
    allowed = ", ".join(f"{name}=…" for name in names)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name not in names:
            raise ValueError(f"{word!r} is not one of {allowed}")
    try:
        config = OmegaConf.merge(base, OmegaConf.from_dotlist(list(words)))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]}=… is missing; the words are {allowed}")
    return cast(Schema, OmegaConf.to_object(config))
