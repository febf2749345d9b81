"""Marks for constructor parameters that are files: whoever configures a method finds, checks and records them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and weights, or a hub id. As in `checkpoint: Annotated[Path, Checkpoint("heads")]`."""

    what: str  # for the message when none is given


@dataclass(frozen=True)
class DataFile:
    """A single file."""

    what: str
    name: str | None = None  # of the file, where its folder is given
