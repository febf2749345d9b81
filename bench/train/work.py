"""A training from its settings: composed, held against what it names, done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.binder import Bound
    from bench.config import Conf
    from bench.settings import Train


def compose(conf: Conf, overrides: Sequence[str]) -> Train:
    """conf/train.yaml with the overrides. Raises UserError for anything the user can mend."""
    from bench.settings import Train

    name, trained = conf.chosen("method", overrides), conf.choices("train")
    if name in conf.choices("method") and name not in trained:
        raise UserError(f"method={name}: there is nothing to train; {nearest(name, trained)}")
    return Train.of(conf.compose("train", overrides))


def fitting(settings: Train) -> Bound:
    """The training, held against what it names. Raises UserError as `bind` does."""
    from bench.binder import bind

    bind(settings.loop, "loop")  # by the names that a user gives
    return bind(settings.train, "train", model=settings.model.name)


def train(settings: Train) -> object:
    """Train. Raises UserError for anything the user can mend."""
    bound = fitting(settings)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    return bound.fetch(model=settings.model).make()
