"""Make joey from a seed: python -m bench.joey [--out DIR] [--work DIR] [--seed 0] [--stage all]."""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bench.command import command
from bench.environment import cpu_name
from bench.files import make_folder, replace_file, replace_text
from methods.errors import UserError, nearest

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "joey"
TOKENIZER_CONVERSATIONS = 20_000
# REST's text: from another seed than the training's, so that joey has not read it; and no seed gives out the first
# prompt of a question.
REST_SEED, REST_CONVERSATIONS = 20_240_611, 6_000
DRAFTS = ("eagle", "eagle3", "hydra", "kangaroo", "medusa", "sps")


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _world(out: Path, work: Path, seed: int) -> None:
    from bench.joey.world import questions

    replace_text(out / "question.jsonl", _lines(questions(seed)), "--out")


def _tokenizer(out: Path, work: Path, seed: int) -> None:
    from bench.joey.tokenizer import train_tokenizer
    from bench.joey.world import conversations

    train_tokenizer(conversations(seed, TOKENIZER_CONVERSATIONS), out)


def _base(out: Path, work: Path, seed: int) -> None:
    from bench.joey.base import Recipe, train_base

    recipe = Recipe()
    took = train_base(out, make_folder(str(work), "--work"), seed, recipe)
    _record(out, "base", {**took, "seed": seed, **asdict(recipe)})


def _curve(out: Path, work: Path, seed: int) -> None:
    from bench.joey.curve import draw

    draw(out / "training" / "base_loss.csv", out / "training" / "base_loss.png")


def _draft(method: str, out: Path, work: Path, seed: int) -> None:
    """Train a method's draft with conf/recipe/joey-METHOD.yaml; one that belongs to another base model is replaced.

    What it took is recorded here, because a draft that is already there takes nothing.
    """
    from bench.config import installed
    from bench.train.state import AnotherRun
    from bench.train.work import compose, train

    overrides = [f"method={method}", "model=joey", f"output={out / method}", f"seed={seed}"]
    overrides += [] if out.resolve() == ASSETS else [f"model.path={out}"]
    summary, began = out / method / "training.json", time.perf_counter()
    before = summary.stat().st_mtime_ns if summary.exists() else None
    try:
        train(compose(installed(), overrides))
    except AnotherRun:
        train(compose(installed(), [*overrides, "resume=false"]))
    if summary.stat().st_mtime_ns != before:
        _record(out, method, {"seconds": round(time.perf_counter() - began, 1), "seed": seed})


def _rest(out: Path, work: Path, seed: int) -> None:
    from bench.joey.world import conversations

    text = _lines(conversations(REST_SEED + seed, REST_CONVERSATIONS))
    packed = gzip.compress(text.encode(), mtime=0)  # no time: the same bytes every day
    replace_file(out / "rest.jsonl.gz", lambda file: file.write_bytes(packed), "--out")


# In the order of `--stage all`: each may need files of the stages before it in `out`.
STAGES: dict[str, Callable[[Path, Path, int], None]] = {
    "world": _world,
    "tokenizer": _tokenizer,
    "base": _base,
    "curve": _curve,
    **{method: partial(_draft, method) for method in DRAFTS},
    "rest": _rest,
}
# The file without which a stage cannot begin, and the stage that writes it.
NEEDS = {
    "base": ("tokenizer.json", "tokenizer"),
    "curve": ("training/base_loss.csv", "base"),
    **dict.fromkeys(DRAFTS, ("model.safetensors", "base")),
}


def _record(out: Path, stage: str, values: dict[str, object]) -> None:
    """Add what a stage took to training/recipe.json, with the machine it ran on."""
    import torch

    path = out / "training" / "recipe.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    machine = {"cpu": cpu_name(), "torch": torch.__version__, "python": platform.python_version()}
    recorded[stage] = {**recorded.get(stage, {}), **values, **machine}
    replace_text(path, json.dumps(recorded, indent=2) + "\n", "--out")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m bench.joey", description="Make joey from a seed.", add_help=False, allow_abbrev=False
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("build/joey"), help="folder of checkpoints to go on from")
    parser.add_argument("--seed", default="0", help="a whole number")
    parser.add_argument("--stage", default="all", help=", ".join([*STAGES, "all"]))
    return parser


@command(lambda arguments: "the same command continues from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Run the stage, or all. Returns the exit status. Raises UserError for anything the user can mend."""
    from bench.settings import check_seed

    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if given.help:
        parser.print_help()
        return 0
    for option in unknown:
        raise UserError(f"{option}: unknown; {nearest(option, (f'--{name}' for name in vars(given)))}")
    if given.stage not in (*STAGES, "all"):
        raise UserError(f"--stage={given.stage}: unknown; {nearest(given.stage, (*STAGES, 'all'))}")
    if not given.seed.isdecimal():
        raise UserError(f"--seed={given.seed}: must be a whole number, 0 or above")
    check_seed(int(given.seed))
    make_folder(str(given.out), "--out")
    for name in STAGES if given.stage == "all" else [given.stage]:
        _run(name, given.out, given.work, int(given.seed))
    return 0


def _run(name: str, out: Path, work: Path, seed: int) -> None:
    file, maker = NEEDS.get(name, ("", ""))
    if not (out / file).exists():
        raise UserError(f"--stage={name}: needs {out / file}, which --stage={maker} writes")
    began = time.perf_counter()
    STAGES[name](out, work, seed)
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s", flush=True)
    if name not in ("base", *DRAFTS):  # these write more, or nothing
        _record(out, name, {"seconds": round(seconds, 1), "seed": seed})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
