"""Configuration: Hydra composes it, and a mistake in it is one line that names the key, the value and what is valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from methods.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    """Names that a configuration group offers, such as the methods."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """conf/<name>.yaml with overrides applied and every reference resolved.

    Raises UserError for an unknown group member or key, with the nearest valid name, and for a value that does not fit.
    """
    parsed = _parse(overrides)
    for override in parsed:
        _check_choice(override)
    groups = [text for text, override in zip(overrides, parsed, strict=True) if _is_group(override)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        base = OmegaConf.to_container(_composed(name, groups), resolve=False)
        assert isinstance(base, dict)
        known = set(_keys(base))
        for override in parsed:
            key = override.key_or_group
            if not (_is_group(override) or override.is_add() or key.startswith("hydra") or key in known):
                raise UserError(f"{key}: unknown override; {nearest(key, known)}")
        return _composed(name, list(overrides))


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries. Raises UserError for a value that is still missing."""
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


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


def _check_choice(override: Override) -> None:
    if _is_group(override) and not override.is_sweep_override():
        value, valid = str(override.value()), choices(override.key_or_group)
        if value not in valid:
            raise UserError(f"{override.key_or_group}={value}: unknown; {nearest(value, valid)}")


def _composed(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error.__cause__ or error)) from error


def _keys(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that can be overridden."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}"


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    key = getattr(error, "full_key", None)
    return f"{key}: {line}" if key else line
