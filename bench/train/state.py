"""The state a training run continues from: one file, atomically replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from bench.files import replace_tensors
from bench.train.log import Point
from methods.engine.checkpoint import are_named_tensors
from methods.errors import UserError, reading

FILE = "training_state.pt"
LATER = frozenset({"dtype", "save_dtype", "held_out"})  # keys of an identity that came later than the first trainings


class AnotherRun(UserError):
    """An output folder that belongs to another run."""


@dataclass(frozen=True)
class State:
    """Everything that decides the rest of a run. The step gives the schedule and the place in the data."""

    identity: Mapping[str, Any]  # what is trained, on what and how: a run continues only itself
    step: int
    tokens: int
    window: list[float]  # sums since the last point of the log
    points: list[Point]
    module: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    random: list[torch.Tensor]  # generator states: CPU, then each CUDA device


def random_states() -> list[torch.Tensor]:
    """States of the default generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def restore_random(states: list[torch.Tensor]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])


def save(folder: Path, state: State) -> None:
    """Replace the folder's state. Raises UserError when the disk is full; the last state then stays."""
    raw = dict(vars(state), points=[asdict(point) for point in state.points])
    replace_tensors(folder / FILE, raw)


def load(folder: Path, identity: Mapping[str, Any]) -> State | None:
    """The folder's state, None when there is none.

    Raises UserError when it cannot be read, AnotherRun when it belongs to another run.
    """
    file = folder / FILE
    if not file.exists():
        return None
    with readable(folder):
        with ZipFile(file) as parts:  # torch does not hold what it reads against the checksums that it wrote
            if broken := parts.testzip():
                raise ValueError(f"{broken} is damaged")
        raw = torch.load(file, map_location="cpu", weights_only=True)
        state = State(**dict(raw, points=[Point(**point) for point in raw["points"]]))
        if not (isinstance(state.identity, Mapping) and are_named_tensors(state.module)):
            raise TypeError("identity and module are no mappings of the right kind")
        if [*map(type, (state.step, state.tokens, *state.window))] != [int] * 2 + [float] * len(state.window):
            raise TypeError("step, tokens and window are not numbers of the right kind")
    refuse_another(folder, state.identity, identity)
    return state


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raises UserError with the remedy for whatever goes wrong while the folder's state is read and put to use."""
    with reading(folder / FILE, "a training state", "; resume=false starts over"):
        yield


def refuse_another(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises AnotherRun, naming the first key that differs and both values, unless the two runs are one.

    Of what is in LATER an older run may say nothing; see `untold`.
    """
    for key in sorted({*found, *wanted} - (LATER - found.keys())):
        if found.get(key) != wanted.get(key):
            raise AnotherRun(
                f"output={folder}: holds a run with {key}={found.get(key)}, this one has {key}={wanted.get(key)}; "
                "give another output, or resume=false to start over"
            )


def untold(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """What is to say of an older run that does not tell all that it is to be continued with."""
    keys = sorted(LATER & wanted.keys() - found.keys())
    asked = ", ".join(f"{key}={wanted[key]}" for key in keys)
    return f"{folder}: is of before {', '.join(keys)} were recorded; taken to have {asked}" if keys else None
