"""What a component of a configuration takes, by the signature of its constructor: names, and types where they are plain."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

KINDS: Mapping[Any, tuple[tuple[type, ...], str]] = {  # of an annotation: what YAML may give for it, and what that is called
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    Sequence: ((ListConfig,), "a list"),
    type(None): ((type(None),), "null"),
}


def check_values(node: Any, where: str) -> None:
    """Compares a part of a configuration, and all within it, with the constructors that it names.

    Raises:
        ValueError: a name that a constructor does not take, or a value of another type than it says.
    """
    if isinstance(node, ListConfig):
        for child in node:
            check_values(child, where)
    if not isinstance(node, DictConfig):
        return
    known = taken(_found(node["_target_"], where)) if "_target_" in node else None
    for name in (str(name) for name in node if not str(name).startswith("_")):
        path = f"{where}.{name}"
        if known is not None and name not in known:
            raise ValueError(f"{path}: {node['_target_'].split('.')[-1]} does not take it, but {', '.join(known)}")
        if OmegaConf.is_missing(node, name):
            continue
        if known is not None and (wanted := _refusal(known[name], node[name])):
            hint = f"; write {path}=[{node[name]}]" if wanted == KINDS[Sequence][1] else ""
            raise ValueError(f"{path}: {node[name]!r} is not {wanted}{hint}")
        check_values(node[name], path)


def _found(target: str, where: str) -> Any:
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{where}._target_: there is no {target}") from error


def taken(called: Any) -> dict[str, Any] | None:
    """The names that may be given and their annotations, of a function that takes keywords by a `TypedDict` those in it too; None
    if it does not say what it takes."""
    try:
        signature = inspect.signature(called, eval_str=True)
    except NameError:  # annotations that only a type checker imports
        signature = inspect.signature(called)
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            keywords = next(iter(get_args(parameter.annotation)), None)
            if not hasattr(keywords, "__required_keys__"):
                return None
            found |= get_type_hints(keywords)
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            found[name] = parameter.annotation
    return found


def required(called: Any) -> set[str]:
    """The names that must be given."""
    parameters = inspect.signature(called).parameters.items()
    return {name for name, p in parameters if p.default is Parameter.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _refusal(annotation: Any, value: Any) -> str:
    """What the annotation wants, if the value is not that; nothing where the annotation is not plain."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = [KINDS.get(get_origin(option) or option) for option in options]
    plain = [kind for kind in kinds if kind is not None]
    if len(plain) < len(kinds) or isinstance(value, DictConfig):
        return ""
    allowed = tuple(one for types_, _ in plain for one in types_)
    if isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed):
        return ""
    return " or ".join(called for _, called in plain)
