"""Types of settings: a value against its annotation, and plain dictionaries into dataclasses."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from methods.errors import UserError, nearest

WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null", dict: "a mapping"}
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Unread:
    """An annotation that a type checker alone can read. Any value fits it."""

    text: str
    why: str


def check_type(key: str, value: Any, kind: Any) -> None:
    """Raises UserError unless the value fits an annotation; of those that WORDS does not know, any value does."""
    if _too_large(value):
        raise UserError(f"{key}={str(value)[:40]}: whole numbers have 64 bits at most")
    if not _fits(value, kind):
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        if get_origin(kind) is Literal:
            raise UserError(f"{key}={shown}: unknown; {nearest(value, get_args(kind))}")
        raise UserError(f"{key}={shown}: must be {_in_words(kind)}")


def settings_of(kind: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Settings:
    """A dataclass of settings from a mapping, inner dataclasses from inner mappings.

    Raises UserError for a key that is missing or unknown and for a value of another type, by its dotted name; whatever
    the dataclass itself refuses in __post_init__ is a UserError of its own.
    """
    kinds = kinds_of(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown; {nearest(key, known)}")
    made: dict[str, Any] = {}
    for name, field in known.items():
        key = f"{prefix}{name}"
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise UserError(f"{key} is missing: give {key}=VALUE")
        elif is_dataclass(kinds[name]) and isinstance(values[name], Mapping):
            made[name] = settings_of(kinds[name], values[name], f"{key}.")
        else:
            check_type(key, values[name], kinds[name])
            made[name] = values[name]
    return kind(**made)


def kinds_of(target: Callable[..., Any]) -> dict[str, Any]:
    """What each parameter of a callable is annotated with; Any where that is nothing, Unread where it cannot be read.

    Python's own get_type_hints gives up on all of them when it cannot evaluate one.
    """
    function = target.__init__ if inspect.isclass(target) else target
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        kind = Any if parameter.annotation is parameter.empty else parameter.annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, {**vars(inspect.getmodule(target)), **getattr(function, "__globals__", {})})
            except NameError as error:
                kind = Unread(kind, str(error))
        found[name] = kind
    return found


def _too_large(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_too_large, value))
    return isinstance(value, int) and abs(value) >= 1 << 63


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, Unread):
        return True
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, *parts) for item in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(item, parts[0]) for item in value)
    kind = origin or kind
    if is_dataclass(kind):
        return isinstance(value, kind)  # type: ignore[arg-type]
    if kind is None or kind not in WORDS:
        return kind is not None or value is None
    if isinstance(value, bool):  # which Python takes for an integer
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Annotated:
        return _in_words(parts[0])
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (list, tuple):
        return f"[{_in_words(parts[0])}, ...]"
    kind = origin or kind
    return "a section" if is_dataclass(kind) else WORDS.get(kind, str(kind))
