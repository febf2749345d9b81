"""Writes results folders whose true acceptance, step cost and speedup are known, for tests of the report.

A drafted token is accepted with probability `acceptance`, independently, up to `gamma` of them, so CTAR(w) is
acceptance^w for w <= gamma. A vanilla step takes STEP_S, a method's step (1 + step_cost) of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

STEP_S = 0.004
PREFILL_S = 0.010
CATEGORIES = ("writing", "translation", "summarization", "qa", "math_reasoning", "rag")
SUBTASK = {"writing": "mt_bench"}
WORDS = [
    a + b + c for a in ("ba", "do", "ki", "lu", "me") for b in ("n", "r", "st", "l") for c in ("a", "e", "o", "um")
]
MACHINE = {
    "cpu": "Imaginary 9000",
    "cores": 2,
    "gpu": None,
    "driver": None,
    "threads": 2,
    "packages": {"torch": "2.0.0", "transformers": "5.0.0"},
}
GPU = MACHINE | {"gpu": "NVIDIA H100", "driver": "570"}


@dataclass(frozen=True)
class Truth:
    """What a simulated run was made from. noise: log standard deviation of a turn's time, after the question's own."""

    acceptance: float = 0.6
    step_cost: float = 0.3
    gamma: int = 6
    noise: float = 0.02
    question_noise: float = 0.05

    @property
    def ctar(self) -> list[float]:
        return [self.acceptance**w if w <= self.gamma else 0.0 for w in range(1, 7)]

    @property
    def cr(self) -> float:
        return 1 + sum(self.acceptance**w for w in range(1, self.gamma + 1))

    @property
    def decode_speedup(self) -> float:
        return self.cr / (1 + self.step_cost)


@dataclass(frozen=True)
class Plan:
    """A simulated run: how many questions a category, repeats and tokens, and where it goes."""

    model: str = "joey"
    method: str = "kangaroo"
    per_category: int = 10
    repeats: int = 3
    tokens: int = 120
    seed: int = 0
    categories: tuple[str, ...] = CATEGORIES
    baseline: bool = True
    demonstration: bool = True
    dtype: str = "float32"
    machine: dict[str, Any] = field(default_factory=lambda: dict(MACHINE))
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    truth: Truth = Truth()
    mismatched_turns: int = 0
    tied_turns: int = 0
    failed_questions: int = 0
    question_ids: tuple[int, ...] | None = None
    text: str | None = None


def write_tokenizer(folder: Path) -> Path:
    """A checkpoint folder whose tokenizer.json spells the simulated token ids."""
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate([*WORDS, "<unk>"])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return folder


def write_run(results: Path, plan: Plan) -> Path:
    """One run directory below `results`/runs. Returns it."""
    config = {
        "model": {"name": plan.model, "path": "", "dtype": plan.dtype},
        "method": {"name": plan.method} | plan.settings,
        "seed": plan.seed,
        "repeats": plan.repeats,
        "shard": "0/1",
    } | plan.config
    digest = hashlib.sha256(json.dumps([config, plan.machine, plan.dtype], sort_keys=True).encode()).hexdigest()[:12]
    folder = results / "runs" / plan.model / plan.method / digest
    folder.mkdir(parents=True)
    info = {
        "schema_version": 1,
        "config": config,
        "command": "python -m bench.run",
        "git": {"commit": "0" * 40, "dirty": False},
        "checkpoint_sha256": {"model.safetensors": "0" * 64},
        "started": "2025-01-01T00:00:00+00:00",
        "extra_parameters": 67_000_000,
        "weight_bytes": 13_476_831_232,
        "layers": 32,
        "datastore_bytes": None,
        "method": plan.method,
        "model": plan.model,
        "demonstration": plan.demonstration,
        "dtype": plan.dtype,
        "baseline": "paired" if plan.baseline else "none",
    } | plan.machine
    (folder / "run.json").write_text(json.dumps(info))
    answers, baseline, failures = _records(plan)
    _write(folder / "answers.jsonl", answers)
    if plan.baseline:
        _write(folder / "baseline.jsonl", baseline)
    if failures:
        _write(folder / "failures.jsonl", failures)
    return folder


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))


def _records(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    noise = np.random.default_rng([plan.seed, 1])
    answers, baseline, failures = [], [], []
    marks = {"mismatch": plan.mismatched_turns, "near_tie": plan.tied_turns}
    questions = [(c, n) for n in range(plan.per_category) for c in plan.categories]
    for index, (category, _) in enumerate(questions):
        question_id = plan.question_ids[index] if plan.question_ids else index + 1
        turns = 2 if category == "writing" else 1
        envelope = {"question_id": question_id, "category": category, "subtask": SUBTASK.get(category, category)}
        envelope |= {"model_id": f"{plan.model}-{plan.method}", "tstamp": 0.0}
        if index < plan.failed_questions:
            for turn in range(turns):
                failures.append(
                    envelope | {"repeat": 0, "turn": turn, "status": "failed", "error": "logits not finite"}
                )
            continue
        words = np.random.default_rng([question_id, 2])  # the text is the question's, whatever the method
        ids = [words.integers(0, len(WORDS), int(words.integers(plan.tokens // 2, plan.tokens * 3 // 2)))
               for _ in range(turns)]  # fmt: skip
        lengths = [_lengths(plan.truth, len(i) - 1, noise) for i in ids]
        factor = float(np.exp(noise.normal(0, plan.truth.question_noise)))
        verdicts = []
        for _ in range(turns):
            name = next((n for n, left in marks.items() if left > 0), "equal")
            if name != "equal":
                marks[name] -= 1
            verdicts.append(name)
        for repeat in range(plan.repeats):
            step_s = STEP_S * (1 + plan.truth.step_cost) * factor
            answers.append(_line(envelope, repeat, ids, lengths, step_s, plan, noise, verdicts))
            if plan.baseline:
                ones = [np.ones(len(i) - 1, dtype=int) for i in ids]
                baseline.append(_line(envelope, repeat, ids, ones, STEP_S, plan, noise, None))
    return answers, baseline, failures


def _lengths(truth: Truth, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Emitted tokens per step, in all exactly `tokens`."""
    if truth.gamma == 0:
        return np.ones(tokens, dtype=int)
    found = np.minimum(rng.geometric(1 - truth.acceptance, size=tokens), truth.gamma + 1)
    ends = found.cumsum()
    count = int(np.searchsorted(ends, tokens)) + 1
    found = found[:count]
    found[-1] -= ends[count - 1] - tokens
    return found


def _line(envelope: dict[str, Any], repeat: int, ids: list[np.ndarray], lengths: list[np.ndarray], step_s: float,
          plan: Plan, rng: np.random.Generator, verdicts: list[str] | None) -> dict[str, Any]:  # fmt: skip
    decode = [len(n) * step_s * float(np.exp(rng.normal(0, plan.truth.noise))) for n in lengths]
    drafting = 0.2 if verdicts is not None and plan.truth.gamma else 0.0
    gamma = plan.truth.gamma if verdicts is not None else 0
    ids = [i.copy() for i in ids]
    fidelity = []
    for turn, verdict in enumerate(verdicts or []):
        position = len(ids[turn]) // 2 if verdict != "equal" else None
        if position is not None:
            ids[turn][position:] = (ids[turn][position:] + 1) % len(WORDS)
        margin = {"equal": None, "near_tie": 1e-4, "mismatch": 0.7}[verdict]
        fidelity.append({"verdict": verdict, "position": position, "margin": margin})
    ending = f" {plan.text}" if plan.text else ""
    choice: dict[str, Any] = {
        "index": 0,
        "turns": [" ".join(WORDS[t] for t in i) + ending for i in ids],
        "decoding_steps": [len(n) for n in lengths],
        "new_tokens": [len(i) for i in ids],
        "wall_time": [PREFILL_S + d for d in decode],
        "accept_lengths": [int(s) for n in lengths for s in n],
        "token_ids": [i.tolist() for i in ids],
        "prompt_tokens": [40] * len(ids),
        "prompt_sha256": ["0" * 64] * len(ids),
        "steps": [[[max(gamma, int(s) - 1), int(s)] for s in n] for n in lengths],
        "prefill_s": [PREFILL_S] * len(ids),
        "draft_s": [d * drafting for d in decode],
        "verify_s": [d * (0.97 - drafting) for d in decode],
        "status": ["ok"] * len(ids),
    }
    if verdicts is not None:
        choice["fidelity"] = fidelity
    return envelope | {"repeat": repeat, "answer_id": f"a{envelope['question_id']}-{repeat}", "choices": [choice]}


def changed(folder: Path, **fields) -> Path:
    """A run's run.json with some fields of its configuration's method, or of its own, replaced."""
    info = json.loads((folder / "run.json").read_text())
    info["config"]["method"] |= fields.pop("method", {})
    (folder / "run.json").write_text(json.dumps(info | fields))
    return folder
