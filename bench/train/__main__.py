"""python -m bench.train method=kangaroo model=vicuna-7b data.path=sharegpt.json output=checkpoints/kangaroo"""

from __future__ import annotations

import os
import sys

from bench.config import check_settings, choices, compose_config, plain
from methods.errors import UserError, nearest

USAGE = """usage: python -m bench.train [method=NAME] [model=NAME] data.path=FILE output=FOLDER [key=value ...]
       accelerate launch --num_processes N -m bench.train ...
methods: {methods}
models:  {models}
keys and their defaults: conf/train.yaml, conf/train/METHOD.yaml, conf/recipe/MODEL-METHOD.yaml"""


def main(overrides: list[str]) -> int:
    """Run what `train._target_` of conf/train.yaml names, with the overrides. Returns the exit status."""
    from bench.train.launch import start_missing_processes

    if {"-h", "--help"} & set(overrides):
        print(USAGE.format(methods=", ".join(choices("train")), models=", ".join(choices("model"))))
        return 0
    try:
        start_missing_processes(overrides)
        train(overrides)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one says it
            print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        over = next((text for text in reversed(overrides) if text.startswith("resume=")), "") == "resume=false"
        again = "the same command without resume=false" if over else "the same command"
        print(f"interrupted; {again} continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def train(overrides: list[str]) -> object:
    """Compose, then train. Raises UserError for anything the user can mend."""
    method = next((text.split("=", 1)[1] for text in overrides if text.startswith("method=")), None)
    if method in choices("method") and method not in choices("train"):
        raise UserError(f"method={method}: there is nothing to train; {nearest(str(method), choices('train'))}")
    config = plain(compose_config("train", overrides))
    check_settings(config["loop"], "loop")
    check_settings({key: value for key, value in config["train"].items() if key != "loop_settings"}, "train")
    if config["threads"] is not None:
        import torch

        if config["threads"] < 1:
            raise UserError(f"threads={config['threads']}: must be at least 1, or null for all")
        torch.set_num_threads(config["threads"])
    return build(config["train"])


def build(node: object) -> object:
    """Call what a node's `_target_` names with its other keys, inner nodes first. Errors pass through unchanged."""
    from hydra.utils import get_object

    if isinstance(node, dict):
        values = {key: build(value) for key, value in node.items() if key != "_target_"}
        return get_object(node["_target_"])(**values) if "_target_" in node else values
    return [build(value) for value in node] if isinstance(node, list) else node


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
