"""python -m bench.train method=kangaroo model=vicuna-7b data.path=sharegpt.json output=checkpoints/kangaroo"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.command import configured, goes_on
from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.binder import Bound
    from bench.config import Conf
    from bench.settings import Train

USAGE = """usage: python -m bench.train [method=NAME] [model=NAME] data.path=FILE output=FOLDER [key=value ...]
       accelerate launch --num_processes N -m bench.train ...
methods: {train}
models:  {model}
keys and their defaults: conf/train.yaml, conf/train/METHOD.yaml, conf/recipe/MODEL-METHOD.yaml"""


def advice(arguments: Sequence[str]) -> str:
    """What follows "interrupted; "."""
    return goes_on(arguments).replace("where it stopped", "from the last checkpoint")


@configured(advice, USAGE)
def main(conf: Conf, overrides: list[str]) -> int:
    """Run what `train._target_` of conf/train.yaml names, with the overrides. Returns the exit status."""
    from bench.train.launch import start_missing_processes

    start_missing_processes([*overrides, *conf.search_path()])
    try:
        train(compose(conf, overrides))
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one says it
            raise
        return 2
    return 0


def compose(conf: Conf, overrides: Sequence[str]) -> Train:
    """conf/train.yaml with the overrides. Raises UserError for anything the user can mend."""
    from bench.settings import Train

    methods, trained = conf.choices("method"), conf.choices("train")
    for name in (text.removeprefix("method=") for text in overrides if text.startswith("method=")):
        if name in methods and name not in trained:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
