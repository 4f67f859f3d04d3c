"""`NAME=VALUE` words of the small commands, checked against a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

Schema = TypeVar("Schema")
KINDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "numbers by names like {height:224}",
}  # fmt: skip


def parse(schema: type[Schema], words: Sequence[str]) -> Schema:
    """The schema's values as the words give them.

    Raises:
        ValueError: a word that is not NAME=VALUE, an unknown name, a value of another type, or a missing one.
    """
    base = OmegaConf.structured(schema)
    names = [str(name) for name in base]
    allowed = ", ".join(f"{name}=…" for name in names)
    hints = get_type_hints(schema)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            raise ValueError(f"{word!r} is not one of {allowed}")
        try:
            OmegaConf.select(OmegaConf.merge(base, OmegaConf.from_dotlist([word])), name)
        except (OmegaConfBaseException, YAMLError) as error:
            kind = _in_words(hints[name])
            raise ValueError(f"{name}: {value!r} is not {kind}" if value else f"{name}: has no value, it takes {kind}") from error
    config = OmegaConf.merge(base, OmegaConf.from_dotlist(list(words)))
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]}=… is missing; the words are {allowed}")
    return cast(Schema, OmegaConf.to_object(config))


def _in_words(hint: Any) -> str:
    """What a value of a type, or of a type or none, is."""
    kinds = {hint, *get_args(hint)} & set(KINDS) if get_origin(hint) is not dict else {dict}
    return " or ".join(KINDS[kind] for kind in kinds)
