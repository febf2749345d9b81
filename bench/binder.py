"""A configuration's `_target_` node -> the object it names: types checked, files found, hashed and labelled.

What a constructor's annotations mark (methods/files.py) is a file: a path, a hub id, or a node of its own whose
`_target_` makes it when it is first wanted. No other place knows which settings are files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from hydra.utils import get_object

from bench.chat import CHAT_FILES
from bench.digests import sha256
from bench.places import locate
from bench.types import Unread, check_type, kinds_of, settings_of
from methods.engine.hub import resolve
from methods.engine.weight_files import matches, weight_files
from methods.errors import UserError, nearest, reading
from methods.files import Checkpoint, DataFile

TARGET = "_target_"
FOR_PEOPLE = ("log.csv", "*.log", "*.md", "*.pdf", "*.png", ".git?*")  # what is left beside weights
OF_TRAINING = ("training.json", "training_state.pt", "states/*.npy")  # what our trainings leave for themselves
BOOKKEEPING = {".git", ".cache", ".DS_Store", "__pycache__"}  # of what fetched or read a folder: no two copies agree
CONTEXT = ("target", "model")  # parameters that the caller gives, not the configuration


@dataclass(frozen=True)
class Bound:
    """A node that fits the signature it names. `fetch`, then `make`."""

    key: str
    target: Callable[..., Any]
    arguments: Mapping[str, Any]
    markers: Mapping[str, Checkpoint | DataFile] = field(default_factory=dict)  # by argument

    def fetch(self, **context: Any) -> Bound:
        """With every file on this disk, and everything that stands inside made, but for what needs the target.

        Raises UserError for a file that is wanted and not given, or cannot be had.
        """
        found: dict[str, Any] = {}
        for name, value in self.arguments.items():
            made: Any = value.fetch(**context) if isinstance(value, Bound) else value
            if isinstance(made, Bound) and "target" not in inspect.signature(made.target).parameters:
                made = made.make(**context)
            found[name] = self._found(name, made) if name in self.markers else made
        return replace(self, arguments=found)

    def make(self, **context: Any) -> Any:
        """What the target makes of its arguments, and of what it takes of the context. Its errors pass unchanged."""
        takes = inspect.signature(self.target).parameters
        given = {name: value for name, value in context.items() if name in takes}
        inside = {name: value._made_inside(**context) for name, value in self._inside()}
        return self.target(**{**given, **self.arguments, **inside})

    def sources(self) -> Iterator[str | Bound]:
        """What its files are configured to be, and those of what stands inside: as given, or what makes them."""
        for name, value in self.arguments.items():
            if name in self.markers and value is not None:
                yield value
            elif isinstance(value, Bound):
                yield from value.sources()

    def files(self) -> Iterator[tuple[str, Path]]:
        """(dotted key, path) of every file that was fetched."""
        for _, inner in self._inside():
            yield from inner.files()
        for name in self.markers:
            if self.arguments.get(name) is not None:
                yield f"{self.key}.{name}", Path(self.arguments[name])

    def _inside(self) -> Iterator[tuple[str, Bound]]:
        """What stands inside and needs the target, such as a method that another one falls back on."""
        for name, value in self.arguments.items():
            if isinstance(value, Bound):
                yield name, value

    def _made_inside(self, **context: Any) -> Any:
        """As `make`; a method's errors speak of method.KEY, and here it is this node's key."""
        try:
            return self.make(**context)
        except UserError as error:
            raise UserError(str(error).replace("method.", f"{self.key}.", 1)) from error

    def _found(self, name: str, given: str | Path | None) -> Path | None:
        key, marker = f"{self.key}.{name}", self.markers[name]
        if given is None:
            return None
        if isinstance(given, Path):
            return given
        if isinstance(marker, Checkpoint):
            return resolve(locate(given), key=key)
        path = Path(locate(given)).expanduser()
        return path / marker.name if marker.name and path.is_dir() else path


def bind(node: Mapping[str, Any], key: str, *, model: str = "") -> Bound:
    """Hold a node against the signature it names; nothing is read, loaded or made.

    key: the node's place in the configuration; model: name of the model, for what it has no file for. Raises UserError
    that lists every key that is missing, unknown or of another type.
    """
    target = _target(node, key)
    parameters, kinds = inspect.signature(target).parameters, kinds_of(target)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    rest = next((kinds[p.name] for p in parameters.values() if p.kind is p.VAR_KEYWORD), Any)
    given = {name: value for name, value in node.items() if name != TARGET}
    own = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    named = [name for name in own if name not in CONTEXT or name in given]
    faults = [f"{key}.{name}: unknown; {nearest(name, named)}" for name in given if name not in named and not takes_all]
    wanted = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    for name, kind in ((name, kinds[name]) for name in named if isinstance(kinds[name], Unread)):
        faults.append(
            f"{key}.{name}: nobody can tell whether it is a file, as its annotation {kind.text} is for type checkers "
            f"alone ({kind.why}): import it at run time too"
        )
    markers = {name: marker for name in named if (marker := _marker(kinds[name]))}
    lines = {name: f"{name}: {'null' if name in markers else 'VALUE'}" for name in wanted if name not in given}
    faults += [f"{key}.{name} is missing: the YAML of {key} needs the line {line}" for name, line in lines.items()]
    makes = "; bench.train makes one" if str(node[TARGET]).startswith("methods.") else ""
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        try:
            arguments[name] = _bound(f"{key}.{name}", value, kinds.get(name, rest), markers.get(name), model, makes)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("; ".join(faults))
    return Bound(key, target, arguments, markers)


def draft_key(node: Mapping[str, Any]) -> str | None:
    """The argument that names what a method's training makes: the first marked one that it cannot do without."""
    kinds = kinds_of(_target(node, "method"))
    return next((name for name, kind in kinds.items() if _marker(kind) and not _optional(kind)), None)


def file_hashes(path: Path, *, draft: bool = False) -> dict[str, str]:
    """SHA-256 by name: of a file; or of a checkpoint folder's weight files, index and JSON, but for its tokenizer's.

    draft: of a folder every file counts but what is for people or keeps its books, as nobody knows what a method from
    outside reads.
    Raises UserError when one cannot be read.
    """
    files = [path]
    if path.is_dir() and draft:
        files = sorted(path.rglob("*"))
    elif path.is_dir():
        files = sorted({*(file for file in path.glob("*.json") if file.name not in CHAT_FILES), *weight_files(path)})
    known = OF_TRAINING if path / OF_TRAINING[0] in files else ()
    hashes = {}
    for file in filter(Path.is_file, files):
        name = file.relative_to(path).as_posix() if file != path else file.name
        left_out = matches(name, known) or matches(file.name, FOR_PEOPLE) or BOOKKEEPING & {*Path(name).parts}
        if file == path or not left_out:
            with reading(file, "part of a checkpoint"):
                hashes[name] = sha256(file)
    return hashes


def _bound(key: str, value: Any, kind: Any, marker: Checkpoint | DataFile | None, model: str, makes: str) -> Any:
    """A value that fits its annotation; a node inside is bound as well."""
    if isinstance(value, Mapping) and TARGET in value:
        return bind(value, key, model=model)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    section = next((part for part in kinds if isinstance(part, type) and is_dataclass(part)), None)
    if section is not None and isinstance(value, Mapping):
        return settings_of(section, value, f"{key}.")
    if marker is None:
        check_type(key, value, kind)
    elif value is None and not _optional(kind):
        whose = f" for model={model}" if model else ""
        form = "folder or hub id" if isinstance(marker, Checkpoint) else "file or folder"
        raise UserError(f"{key}: none is configured{whose}; wanted: {marker.what}, by {form}{makes}")
    else:
        check_type(key, value, str | None)
    return value


def _target(node: Mapping[str, Any], key: str) -> Callable[..., Any]:
    if TARGET not in node:
        raise UserError(f"{key}.{TARGET} is missing: {key}.{TARGET}=package.module.Class names what is made")
    try:
        found = get_object(node[TARGET])
        takes = inspect.signature(found).parameters
    except (Exception, SystemExit) as error:  # whatever importing somebody's module raises
        said = " ".join(str(error).split())[:300] or type(error).__name__  # on several lines
        raise UserError(f"{key}.{TARGET}={node[TARGET]}: {said}") from error
    if key == "method" and not any(name == "target" or p.kind is p.VAR_KEYWORD for name, p in takes.items()):
        raise UserError(f"{key}.{TARGET}={node[TARGET]}: makes no method, as it takes no parameter named target")
    return found


def _marker(kind: Any) -> Checkpoint | DataFile | None:
    if get_origin(kind) is Annotated:
        return next((part for part in get_args(kind)[1:] if isinstance(part, (Checkpoint, DataFile))), None)
    return next((marker for part in get_args(kind) if (marker := _marker(part))), None)


def _optional(kind: Any) -> bool:
    return get_origin(kind) is not Annotated and type(None) in get_args(kind)
