"""python -m bench.train method=kangaroo model=vicuna-7b data.path=sharegpt.json output=checkpoints/kangaroo"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.command import configured, goes_on
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.config import Conf

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
    from bench.train.work import compose, train

    start_missing_processes([*overrides, *conf.search_path()])
    try:
        train(compose(conf, overrides))
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one says it
            raise
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
