"""Configuration: Hydra composes it, and a mistake in it is one line that names the key, the value and what is valid."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from methods.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
# What a value may be in any of the entry points' files; a method's settings are held against its own signature.
TYPES: dict[str, Any] = {
    "data.path": str | None,
    "data.limit": int | None,
    "data.held_out": int,
    "limit": int | None,
    "question_ids": int | list[int] | None,
    "max_new_tokens": int,
    "temperature": float,
    "repeats": int,
    "baseline": str,
    "seed": int,
    "threads": int | None | list[int | None],  # a list: bench.speed
    "warmup_turns": int,
    "results_dir": str,
    "output": str,
    "resume": bool,
    "task.subtasks": list[str],
    "model.name": str,
    "model.path": str,
    "model.revision": str | None,
    "model.weights": str,
    "model.dtype": str,
    "model.device": str,
    "model.context": int | None,
    "model.chat_template": str | None,
    "model.exit_layer": int,
    "model.built_in": bool,
    "model.threads": int | None,
    "model.drafts.kangaroo": str | None,
    "model.drafts.medusa": str | None,
    "model.drafts.rest": str | None,
    # bench.speed
    "methods": str | list[str],
    "dtypes": str | list[str],
    "rows": int | list[int],
    "prompt_tokens": int,
    "past": int,
    "passes": int,
}
WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def choices(group: str) -> list[str]:
    """Names that a configuration group offers, such as the methods."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """conf/<name>.yaml with overrides applied and every reference resolved.

    Raises UserError for an unknown group member or key, with the nearest valid name, and for a key taken away.
    """
    parsed = _parse(overrides)
    for override in parsed:
        key = override.key_or_group
        if override.is_delete():
            raise UserError(f"{override.input_line}: a key cannot be taken away; {key}=VALUE sets it")
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: several values at once are a sweep: bench.run -m {key}=value,value"
            )
        if _is_group(override):
            _check_choice(key, str(override.value()))
    groups = [text for text, override in zip(overrides, parsed, strict=True) if _is_group(override)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        base = OmegaConf.to_container(_composed(name, groups), resolve=False)
        assert isinstance(base, dict)
        known = {*_leaves(base), *(str(key) for key in base if (CONF / str(key)).is_dir())}
        for override in parsed:
            key = override.key_or_group
            if not (_is_group(override) or key.startswith("hydra") or key in known):
                raise UserError(f"{key}: unknown override; {nearest(key, known)}")
        return _composed(name, list(overrides))


def check_sweep(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The first point of a sweep. Raises UserError as `compose_config` does, for any value of a configuration group."""
    first = list(overrides)
    for at, override in enumerate(_parse(overrides)):
        if override.is_sweep_override():
            points = _points(override)
            for point in points if _is_group(override) else ():
                _check_choice(override.key_or_group, point)
            first[at] = f"{override.get_key_element()}={points[0]}"
    return plain(compose_config(name, first))


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries. Raises UserError for a value that is missing or of the wrong type."""
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    assert isinstance(container, dict)
    values = _leaves(container)
    for key, kind in TYPES.items():
        if key in values:
            check_type(key, values[key], kind)
    if values.get("seed", 0) < 0:
        raise UserError(f"seed={values['seed']}: must be 0 or above")
    name = values.get("model.name", "-")
    if name in ("", ".", "..") or "/" in name:
        raise UserError(f"model.name={name}: names a folder of the results; valid: a name without /")
    return {str(key): value for key, value in container.items()}


def check_type(key: str, value: Any, kind: Any) -> None:
    """Raises UserError unless the value fits an annotation; of those that WORDS does not know, any value does."""
    if not _fits(value, kind):
        shown = value if isinstance(value, str) else json.dumps(value)
        raise UserError(f"{key}={shown}: must be {_in_words(kind)}")


def check_settings(node: Mapping[str, Any], prefix: str) -> None:
    """Raises UserError for a value of another type than the signature of the node's `_target_` says."""
    try:
        target = get_object(node["_target_"])
    except ImportError as error:
        raise UserError(f"{prefix}._target_={node['_target_']}: {_first_line(error)}") from error
    try:
        parameters = inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation that is imported for type checkers only
        return
    rest = next((p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD), Any)
    for key, value in node.items():
        if key != "_target_":
            check_type(f"{prefix}.{key}", value, parameters[key].annotation if key in parameters else rest)


def locate(value: Any) -> Any:
    """A path that ships with the project, found from any working directory; everything else as it is."""
    if isinstance(value, str) and value and not Path(value).exists() and (ROOT / value).exists():
        return str(ROOT / value)
    return value


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{_first_line(error)}; an override is written key=value") from error


def _is_group(override: Override) -> bool:
    return (CONF / override.key_or_group).is_dir()


def _check_choice(group: str, value: str) -> None:
    valid = choices(group)
    if value not in valid:
        raise UserError(f"{group}={value}: unknown; {nearest(value, valid)}")


def _points(override: Override) -> list[str]:
    """The values of a sweep, as written. Raises UserError when they cannot be listed, or there is none."""
    value = override.value()
    points = []
    if isinstance(value, Glob):
        points = value.filter(choices(override.key_or_group))
    elif override.is_discrete_sweep():
        points = list(override.sweep_string_iterator())
    if not points:
        raise UserError(
            f"{override.input_line}: no values to sweep over; {override.key_or_group}=value,value lists them"
        )
    return points


def _composed(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error.__cause__ or error)) from error


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Everything that can be overridden, by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            found[f"{prefix}{key}"] = value
    return found


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, *get_args(kind)) for item in value)
    if kind is None or kind not in WORDS:
        return kind is not None or value is None
    if isinstance(value, bool):  # which Python takes for an integer
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is list:
        return f"[{_in_words(*get_args(kind))}, ...]"
    return WORDS.get(kind, str(kind))


def _first_line(error: BaseException) -> str:
    if isinstance(error, MissingMandatoryValue):
        return f"{getattr(error, 'full_key', '')} is missing: give {getattr(error, 'full_key', '')}=VALUE"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    key = getattr(error, "full_key", None)
    return f"{key}: {line}" if key else line
