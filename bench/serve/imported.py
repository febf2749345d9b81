"""Results of other programs as pairs of servers: `vllm bench serve` (JSON, with or without --save-detailed), SpecForge.

Written from their sources (vLLM 0.32; SpecForge's bench_eagle3.py of 2026). What they do not know stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from bench.serve.acceptance import Acceptance
from bench.serve.metrics import Comparison, summarise
from bench.serve.records import SIDES, Lines, Records
from methods.errors import UserError

UNKNOWN = "imported: machine, settings, prompts and whether answers are the plain server's are not in these files"
SPECFORGE = ("batch_size", "steps", "topk", "num_draft_tokens", "metrics")
VLLM = ("duration", "completed", "max_concurrency")


def is_result(path: Path) -> bool:
    """Whether a file is one JSON object that is no line of answers. What cannot be read is for others to say."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(found, dict) and "question_id" not in found


def import_comparisons(
    files: Sequence[Path], baseline: Sequence[Path], *, model: str = "", name: str = ""
) -> list[Comparison]:
    """Pairs of servers from result files. Raises UserError naming the file for what is none."""
    theirs, found = [(path, _vllm(path)) for path in baseline], list[Comparison]()
    by_label: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in files:
        result = orjson.loads(path.read_bytes())
        if all(key in result for key in VLLM):
            by_label.setdefault(name or result.get("label") or "vllm bench serve", []).append((path, result))
        else:
            with _right_form(path):
                found += _specforge(path, result, model)
    for label, members in by_label.items():
        with _right_form(members[0][0]):
            found.append(_of_vllm(members, theirs, model, label))
    return found


@contextmanager
def _right_form(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"import: {path}: a result of another form ({type(error).__name__}: {error})") from error


def _comparison(
    path: Path, model: str, name: str, engine: str, lines: tuple[Lines, Lines], notes: list[str]
) -> Comparison:
    levels = sorted({block["level"] for block in lines[1]})
    servers = {side: {"engine": engine} for side in SIDES}
    info = {"model": model, "method": name, "imported": True, "servers": servers, "config": {"concurrency": levels}}
    records = Records(path, info, *lines, [], (UNKNOWN, *notes))
    return Comparison(records, summarise(records))


def _vllm(path: Path) -> dict[str, Any]:
    result = orjson.loads(path.read_bytes()) if is_result(path) else {}
    if not all(key in result for key in VLLM):
        raise UserError(f"baseline: {path}: no result of vllm bench serve; it has no {', '.join(VLLM)}")
    return dict(result)


def _of_vllm(
    ours: list[tuple[Path, dict[str, Any]]], theirs: list[tuple[Path, dict[str, Any]]], model: str, name: str
) -> Comparison:
    requests, blocks, notes = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    asked: dict[tuple[int, int], Any] = {}
    texts: dict[tuple[int, int], Any] = {}
    different = compared = 0
    for side, members in zip(SIDES, (ours, theirs), strict=True):
        repeats: dict[int, int] = {}
        for path, result in members:
            level = result["max_concurrency"]
            if type(level) is not int:
                raise UserError(
                    f"import: {path}: max_concurrency={level}; a rate of requests is no number of them at a time"
                )
            place = level, repeats.get(level, 0)
            repeats[level] = place[1] + 1
            lengths, said = result.get("input_lens"), result.get("generated_texts")
            if lengths != asked.setdefault(place, lengths) and None not in (lengths, asked[place]):
                raise UserError(
                    f"import: {path}: other prompts than the other side's (input_lens); wanted: the same seed"
                )
            if said and (before := texts.setdefault(place, said)) is not said:
                different += sum(a != b for a, b in zip(said, before, strict=True))
                compared += len(said)
            requests += _vllm_requests(result, side, place)
            blocks.append(_block(side, level, place[1], 0, result["duration"], result["total_output_tokens"],
                                 result["completed"], _vllm_acceptance(result)))  # fmt: skip
    if compared:
        notes.append(f"{different} of {compared} answers have another text than the plain server's (near ties, and "
                     "whether answers were greedy, cannot be told)")  # fmt: skip
    model = model or str(ours[0][1].get("model_id") or "unknown")
    return _comparison(ours[0][0], model, name, "vllm", (requests, blocks), notes)


def _vllm_requests(result: Mapping[str, Any], side: str, place: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """A line for each request, where the result was saved with --save-detailed."""
    level, repeat = place
    columns = ("output_lens", "ttfts", "itls", "errors", "generated_texts")
    if not all(name in result for name in columns[:3]):
        return
    rows = zip(*(result.get(name) or [""] * len(result["ttfts"]) for name in columns), strict=True)
    for number, (tokens, ttft_s, gaps_s, error, text) in enumerate(rows):
        line = {"question_id": number, "category": "imported", "subtask": "imported", "repeat": repeat, "turn": 0,
                "level": level, "block": 0, "side": side, "attempt": side}  # fmt: skip
        if error or not tokens:
            yield {**line, "status": "failed", "error": error or "no tokens"}
            continue
        times_s = [*accumulate([ttft_s, *gaps_s])]
        times = {"wall_s": times_s[-1], "ttft_s": ttft_s, "times_s": times_s}
        yield {**line, **times, "status": "ok", "new_tokens": tokens, "text": text}


def _vllm_acceptance(result: Mapping[str, Any]) -> Acceptance | None:
    if "spec_decode_accepted_tokens" not in result:
        return None
    drafts, rates = result["spec_decode_num_drafts"], result.get("spec_decode_per_position_acceptance_rates")
    deeper = tuple(round(rate * drafts) for rate in rates) if rates else None
    return Acceptance(result["spec_decode_accepted_tokens"], result["spec_decode_draft_tokens"], deeper=deeper)


def _block(side: str, level: int, repeat: int, number: int, wall_s: float, tokens: float, answers: int,
           acceptance: Acceptance | None) -> dict[str, Any]:  # fmt: skip
    return {"level": level, "repeat": repeat, "block": number, "side": side, "attempt": side, "wall_s": wall_s,
            "acceptance": asdict(acceptance) if acceptance else None, "tokens": tokens, "answers": answers}  # fmt: skip


def _specforge(path: Path, result: Mapping[str, Any], model: str) -> Iterator[Comparison]:
    """A pair for each setting with draft steps; the settings with none are its plain server."""
    found = {name: rows for name, rows in result.items() if name != "model"}
    rows = [(name, row) for name, listed in found.items() for row in listed]
    if not rows or not all(key in row for _, row in rows for key in SPECFORGE):
        raise UserError(f"import: {path}: neither a result of vllm bench serve nor one of SpecForge")
    settings = dict.fromkeys((row["steps"], row["topk"], row["num_draft_tokens"]) for _, row in rows if row["steps"])
    for setting in settings:
        blocks: Lines = []
        for number, name in enumerate(found):
            for row in found[name]:
                mine = (row["steps"], row["topk"], row["num_draft_tokens"])
                if mine != setting and row["steps"]:
                    continue
                side = SIDES[0] if mine == setting else SIDES[1]
                for repeat, one in enumerate(row["metrics"]):
                    tokens, answers = one["output_throughput"] * one["latency"], one["num_questions"]
                    steps = Acceptance(steps=round(tokens / one["accept_length"])) if side == SIDES[0] else None
                    blocks.append(
                        _block(side, row["batch_size"], repeat, number, one["latency"], round(tokens), answers, steps)
                    )
        label = "steps {}, topk {}, tokens {}".format(*setting)
        draft = str(result.get("model") or "unknown")
        notes = ["CR takes each question for one answer; of several turns, it is a little too high"]
        yield _comparison(path, model or draft, label, "sglang", ([], blocks), notes)
