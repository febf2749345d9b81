"""Make joey from a seed: python -m bench.joey [--out DIR] [--work DIR] [--seed 0] [--stage all]."""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.environment import cpu_name

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "joey"
TOKENIZER_CONVERSATIONS = 20_000
# REST's text: from another seed than the training's, so that joey has not read it; and no seed gives out the first
# prompt of a question.
REST_SEED, REST_CONVERSATIONS = 20_240_611, 6_000


def _world(out: Path, work: Path, seed: int) -> None:
    from bench.joey.world import questions

    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions(seed)]
    (out / "question.jsonl").write_text("".join(lines), encoding="utf-8")


def _tokenizer(out: Path, work: Path, seed: int) -> None:
    from bench.joey.tokenizer import train_tokenizer
    from bench.joey.world import conversations

    train_tokenizer(conversations(seed, TOKENIZER_CONVERSATIONS), out)


def _base(out: Path, work: Path, seed: int) -> None:
    from bench.joey.base import Recipe, train_base

    recipe = Recipe()
    took = train_base(out, work, seed, recipe)
    _record(out, "base", {**took, "seed": seed, **asdict(recipe)})


def _curve(out: Path, work: Path, seed: int) -> None:
    from bench.joey.curve import draw

    draw(out / "training" / "base_loss.csv", out / "training" / "base_loss.png")


def _draft(method: str, out: Path, seed: int) -> None:
    """Train a method's draft with conf/recipe/joey-METHOD.yaml; one that belongs to another base model is replaced.

    What it took is recorded here, because a draft that is already there takes nothing.
    """
    from bench.config import installed
    from bench.train.__main__ import compose, train
    from bench.train.state import AnotherRun

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


def _kangaroo(out: Path, work: Path, seed: int) -> None:
    _draft("kangaroo", out, seed)


def _medusa(out: Path, work: Path, seed: int) -> None:
    _draft("medusa", out, seed)


def _rest(out: Path, work: Path, seed: int) -> None:
    from bench.joey.world import conversations

    records = conversations(REST_SEED + seed, REST_CONVERSATIONS)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (out / "rest.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))  # no time: the same bytes every day


# In the order of `--stage all`: each needs the files of the stages before it in `out`.
STAGES: dict[str, Callable[[Path, Path, int], None]] = {
    "world": _world,
    "tokenizer": _tokenizer,
    "base": _base,
    "curve": _curve,
    "kangaroo": _kangaroo,
    "medusa": _medusa,
    "rest": _rest,
}


def _record(out: Path, stage: str, values: dict[str, object]) -> None:
    """Add what a stage took to training/recipe.json, with the machine it ran on."""
    import torch

    path = out / "training" / "recipe.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    recorded = json.loads(path.read_text()) if path.exists() else {}
    machine = {"cpu": cpu_name(), "torch": torch.__version__, "python": platform.python_version()}
    recorded[stage] = {**recorded.get(stage, {}), **values, **machine}
    path.write_text(json.dumps(recorded, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.joey", description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("build/joey"), help="folder of checkpoints to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        began = time.perf_counter()
        STAGES[name](arguments.out, arguments.work, arguments.seed)
        seconds = time.perf_counter() - began
        print(f"{name}: {seconds:.0f} s", flush=True)
        if name not in ("base", "kangaroo", "medusa"):  # these write more, or nothing
            _record(arguments.out, name, {"seconds": round(seconds, 1), "seed": arguments.seed})


if __name__ == "__main__":
    main()
