"""Configuration: Hydra composes it, and a mistake in it is one line that names the key, the value and what is valid."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from bench.places import CONF
from methods.errors import UserError, first_line, nearest

ENTRY_POINTS = "speculative_bench"  # where an installed package names a folder of its own laid out like conf/
FOLDER_OPTION, FOLDER_KEY, PACKAGE = "--config-dir", "hydra.searchpath", "pkg://"
HOME = {"results_dir", "output", "prompts", "exclude"}  # paths, by key
FALLBACK = "method.fallback"  # a method inside another one, by name
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError, OSError)


@dataclass(frozen=True)
class Composed:
    """A whole configuration, resolved, and which member of each group it was composed of."""

    values: dict[str, Any]
    choices: dict[str, str]


@dataclass(frozen=True)
class Conf:
    """Folders of configuration: the project's own, and what packages from outside or the command line add."""

    folders: tuple[Path, ...]

    @classmethod
    def given(cls, arguments: Sequence[str]) -> tuple[Conf, list[str]]:
        """Every folder there is, those that the arguments name included, and the arguments that are left.

        Raises UserError for a folder that is not there.
        """
        added: list[Path] = []
        left: list[str] = []
        waiting = iter(arguments)
        for argument in waiting:
            key, equals, value = argument.partition("=")
            if key == FOLDER_OPTION:
                added.append(_folder(FOLDER_OPTION, value if equals else next(waiting, "")))
            elif key.lstrip("+") == FOLDER_KEY:
                listed = _parse([argument])[0].value()
                names = listed if isinstance(listed, list) else [listed]
                added += [_folder(FOLDER_KEY, str(name)) for name in names]
            else:
                left.append(argument)
        conf = cls(tuple(dict.fromkeys((*installed().folders, *added))))
        conf.check_names()
        return conf, left

    def check_names(self) -> None:
        """Raises UserError for a file that another folder has too, and that would therefore never be read."""
        seen: dict[tuple[str, str], Path] = {}
        for file in (file for folder in self.folders for file in sorted(folder.glob("*/[!_]*.yaml"))):
            first = seen.setdefault((file.parent.name, file.name), file)
            if first is not file and first.read_bytes() != file.read_bytes():
                raise UserError(f"{file}: {first} has this name already; give yours another")

    def choices(self, group: str) -> list[str]:
        """Names that a configuration group offers, such as the methods. What begins with _ is for other files only."""
        found = {file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")}
        return sorted(name for name in found if not name.startswith("_"))

    def file(self, group: str, name: str) -> Path | None:
        """A member's file, if there is one."""
        files = (folder / group / f"{name}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)

    def is_group(self, key: str) -> bool:
        """Whether a key chooses a file."""
        return bool(key) and any(os.path.isdir(folder / key) for folder in self.folders)  # no error for a long one

    def compose(self, name: str, overrides: Sequence[str]) -> Composed:
        """<name>.yaml with overrides applied and every reference resolved.

        Raises UserError for an unknown group member or key, with the nearest valid name, for a key taken away, and for
        a value that is missing.
        """
        parsed = _parse(overrides)
        for override in parsed:
            self._check(override)
        written = self._written(parsed)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                composed = compose(name, [*written, *self.search_path()], return_hydra_config=True)
            except COMPOSING as error:
                self._explain(name, parsed, error)
                raise UserError(_line(error.__cause__ or error)) from error
        choices = {str(group): str(name) for group, name in composed.hydra.runtime.choices.items()}
        if "draft" in composed:
            raise UserError(f"conf/draft/{choices.get('draft')}.yaml: must begin with the line # @package method")
        with open_dict(composed):
            del composed["hydra"]
        values = plain(composed)
        for key in HOME & values.keys():  # a shell leaves the ~ of KEY=~/place as it is
            values[key] = os.path.expanduser(values[key]) if isinstance(values[key], str) else values[key]
        return Composed(values, choices)

    def points(self, overrides: Sequence[str]) -> list[list[str]]:
        """The overrides of every point of a sweep; values of the last one given vary fastest.

        Raises UserError for values that cannot be listed.
        """
        axes = [
            [f"{override.get_key_element()}={point}" for point in self._points(override)]
            if override.is_sweep_override()
            else [str(override.input_line)]
            for override in _parse(overrides)
        ]
        return [list(point) for point in product(*axes)]

    def search_path(self) -> list[str]:
        """The override that tells Hydra of the folders besides the project's own."""
        quoted = (str(folder).replace("'", "\\'") for folder in self.folders if folder != CONF)
        others = ",".join(f"'file://{folder}'" for folder in quoted)
        return [f"{FOLDER_KEY}=[{others}]"] if others else []

    def options(self) -> list[str]:
        """The folders that arguments named, as arguments."""
        return [f"{FOLDER_OPTION}={folder}" for folder in self.folders if folder not in installed().folders]

    def chosen(self, key: str, overrides: Sequence[str]) -> str | None:
        """What overrides choose for a group, or name for a key. Raises UserError for one that is not key=value."""
        values = [override.value() for override in _parse(overrides) if override.key_or_group == key]
        return values[-1] if values and isinstance(values[-1], str) else None

    def _written(self, parsed: Sequence[Override]) -> list[str]:
        """Overrides in Hydra's words: method.fallback=NAME is that method's file there, and its draft for the model.

        Raises UserError for a method that there is not.
        """
        # +key=value is the same as key=value, for keys that are there.
        written = [str(override.input_line).lstrip("+") for override in parsed if override.key_or_group != FALLBACK]
        inner = [override for override in parsed if override.key_or_group == FALLBACK]
        if not inner:
            return written
        if not isinstance(method := inner[-1].value(), str):
            return [*written, str(inner[-1].input_line).lstrip("+")]
        self._check_choice("method", method, FALLBACK)
        drafts = [f"draft@{FALLBACK}='{method}-${{model}}'"] if self._has_drafts(method) else []
        return [*written, f"method@{FALLBACK}={method}", *drafts]

    def _has_drafts(self, method: str) -> bool:
        """Whether it has one for any model; which one it is, Hydra knows."""
        return any(name.startswith(f"{method}-") for name in self.choices("draft"))

    def _check(self, override: Override) -> None:
        key = override.key_or_group
        if override.is_delete():
            raise UserError(f"{override.input_line}: a key cannot be taken away; {key}=VALUE sets it")
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: several values at once are a sweep: bench.run -m {key}=value,value; "
                f"a list is {key}=[value,value]"
            )
        if re.match(r"hydra\b", key):
            only = f"Hydra only composes here, and takes {FOLDER_KEY} alone; launcher=slurm is for a cluster"
            raise UserError(f"{override.input_line}: {only}")
        if self.is_group(key):
            self._check_choice(key, str(override.value()), key)

    def _check_choice(self, group: str, value: str, key: str) -> None:
        valid = self.choices(group)
        if value not in valid:
            raise UserError(f"{key}={value}: unknown; {nearest(value, valid)}")

    def _points(self, override: Override) -> list[str]:
        """The values of a sweep, as written. Raises UserError when they cannot be listed, or there is none."""
        value = override.value()
        points = []
        if isinstance(value, Glob):
            points = value.filter(self.choices(override.key_or_group))
        elif override.is_discrete_sweep():
            points = list(override.sweep_string_iterator())
        if not points:
            raise UserError(
                f"{override.input_line}: no values to sweep over; {override.key_or_group}=value,value lists them"
            )
        return points

    def _explain(self, name: str, parsed: Sequence[Override], error: BaseException) -> None:
        """Raises UserError for the first override of a key that is not there; composes what they were applied to."""
        try:
            base = compose(name, self.search_path(), return_hydra_config=True)
            groups = [group for group in base.hydra.runtime.choices if self.is_group(group)]
            chosen = [str(override.input_line) for override in parsed if override.key_or_group in groups]
            base = compose(name, [*chosen, *self.search_path()])
        except COMPOSING:
            return
        known = [*groups, *_leaves(OmegaConf.to_container(base, resolve=False))]
        for override in parsed:
            key = override.key_or_group
            if not (key.startswith("hydra") or key in known):
                raise UserError(f"{key}: unknown override; {nearest(key, known)}") from error


@cache
def installed() -> Conf:
    """The project's own configuration and that of installed packages. Raises UserError for one that is not there.

    A package says `conf = "its_package.folder"` under the entry points ENTRY_POINTS.
    """
    found = [CONF]
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.value):
        remedy = f"uninstall or mend the package {point.dist.name if point.dist else point.value}"
        try:
            folders = _of_package(point.value)
        except Exception as error:  # whatever the package's own code raises when its parent is imported
            raise UserError(f"entry point {point.name}={point.value}: {first_line(error)}; {remedy}") from error
        if not folders:
            raise UserError(f"entry point {point.name}={point.value}: no such folder; {remedy}")
        found += folders
    return Conf(tuple(found))


def _of_package(name: str) -> list[Path]:
    """The folders of a package, by its dotted name."""
    spec = importlib.util.find_spec(name)
    return [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries. Raises UserError for a value that is missing."""
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except COMPOSING as error:
        raise UserError(_line(error)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _folder(key: str, given: str) -> Path:
    folder = Path(given.removeprefix("file://")).expanduser().absolute()
    if given.startswith(PACKAGE):
        with suppress(ImportError, ValueError):  # no such package, or no name of one
            folder = next(iter(_of_package(given.removeprefix(PACKAGE))), folder)
    if not given or not folder.is_dir():
        raise UserError(f"{key}={given}: no such folder; wanted: one laid out like conf/, with method/NAME.yaml in it")
    return folder


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        said = re.sub(r"^\w+Exception: ", "", _line(error))  # its parser's own name for a sign that it does not know
        raise UserError(f"{said[:200]}; an override is written key=value") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"{max(overrides, key=len)[:40]}...: nested too deep, or a number too long") from error


def _leaves(tree: Any, prefix: str = "") -> list[str]:
    """Dotted names of everything that can be overridden."""
    found: list[str] = []
    for key, value in tree.items():
        below = _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
        found += below or ([] if key == "_target_" else [f"{prefix}{key}"])
    return found


def _line(error: BaseException) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name} line {mark.line + 1}: not valid YAML ({error.problem})"
    key = getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing: give {key}=VALUE"
    return f"{key}: {first_line(error)}" if key else first_line(error)
