"""Every number of a table or figure, computed here once from recorded turns. No clock, no torch.

Counting and names follow the measurement protocol: a step emits s_k tokens, CR is the mean of s_k over the steps of a
subtask, CTAR(w) the share of steps with s_k > w, and a step costs c = CR / decode speedup - 1 target passes beyond its
own. A value that was not measured is None, never 0 or 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy  # brings scipy.stats, which takes a second, where it is first used

from bench.gauge import NOT_THROTTLED
from bench.questions.spec_bench import SUBTASKS
from bench.records.frame import CTAR_POSITIONS, Run, ordered_subtasks, turn_frame

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
RESAMPLES = 2000
BULKY = ("text", "prompt_sha256", "token_ids", "lengths", "candidates")

VERDICTS = ("unchecked", "equal", "near_tie", "mismatch")
SPEED_FIGURES = (
    *("baseline_tokens_per_s", "speedup", "speedup_low", "speedup_high", "speedup_pooled", "speedup_paired"),
    *("speedup_paired_low", "speedup_paired_high", "decode_speedup", "step_cost", "baseline_step_ms", "spread"),
)

Array = np.ndarray


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % interval."""

    low: float
    high: float


def compression_ratio(lengths: Sequence[int] | Array) -> float | None:
    """CR = sum of s_k over the number of steps; lengths: emitted tokens per step, one entry a step."""
    return float(np.mean(lengths)) if len(lengths) else None


def ctar(lengths: Sequence[int] | Array, w: int) -> float | None:
    """CTAR(w): share of steps that emitted more than w tokens."""
    return float(np.mean(np.asarray(lengths) > w)) if len(lengths) else None


def question_rates(turns: pd.DataFrame) -> pd.DataFrame:
    """tokens/s by question (rows) and repeat (columns): a question's tokens over its turns by its seconds."""
    rows, questions = pd.factorize(turns.question_id, sort=True)
    columns, repeats = pd.factorize(turns.repeat, sort=True)
    shape = len(questions), len(repeats)
    cells = rows * shape[1] + columns  # sums by hand: ten times as fast as a two-level groupby
    tokens, seconds = (np.bincount(cells, turns[name], shape[0] * shape[1]) for name in ("new_tokens", "wall_s"))
    with np.errstate(invalid="ignore"):  # 0 / 0 where a question lacks a repeat: missing
        return pd.DataFrame((tokens / seconds).reshape(shape), index=questions, columns=repeats)


def speedup(rates: Array, baseline_rates: Array) -> float:
    """Spec-Bench's: mean over questions of tokens/s, over the same mean of the baseline."""
    return float(np.mean(rates) / np.mean(baseline_rates))


def speedup_pooled(answers: pd.DataFrame, baseline: pd.DataFrame) -> float:
    """All tokens over all seconds, as a ratio to the baseline's."""
    ours, theirs = (t.new_tokens.sum() / t.wall_s.sum() for t in (answers, baseline))
    return float(ours / theirs)


def geometric_mean(ratios: Array) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def bca_interval(statistic: Callable[..., Any], *samples: Array, resamples: int = RESAMPLES) -> Interval | None:
    """95 % BCa bootstrap interval over questions (Efron 1987; scipy.stats.bootstrap), paired and reproducible.

    samples: arrays [questions], one value a question, so that repeats and turns stay inside their question.
    statistic: takes the samples and `axis`. One question, or no variation, has none.

    A bootstrap of few values varies too little. Intervals are widened as Student's t is over the normal distribution
    (Hesterberg 2015, arXiv 1411.5279, section 4.1).
    """
    if len(samples[0]) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate data is answered with "no interval" below
        found = scipy.stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=expanded_confidence(len(samples[0])),
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    known = np.isfinite(found.low) and np.isfinite(found.high)
    return Interval(float(found.low), float(found.high)) if known else None


def expanded_confidence(count: int) -> float:
    """Level at which a bootstrap of `count` values reaches CONFIDENCE."""
    bound = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return float(min(1 - 2 * scipy.stats.norm.sf(bound), 1 - 1e-9))


def ratio_interval(ratios: Array, resamples: int = RESAMPLES) -> Interval | None:
    """Interval of the geometric mean of per-question ratios [questions]."""
    logs = bca_interval(lambda x, axis: np.mean(x, axis=axis), np.log(ratios), resamples=resamples)
    return logs and Interval(float(np.exp(logs.low)), float(np.exp(logs.high)))


def spread(values: Sequence[float]) -> float | None:
    """(largest - smallest) over the mean of the repeats' values; None for a single repeat."""
    return float((max(values) - min(values)) / np.mean(values)) if len(values) > 1 else None


def decode_seconds_per_step(turns: pd.DataFrame) -> float | None:
    """(wall - prefill) over steps, pooled. None where phases or steps were not recorded."""
    seconds, steps = (turns.wall_s - turns.prefill_s).sum(skipna=False), turns.steps.sum(skipna=False)
    return float(seconds / steps) if np.isfinite(seconds) and steps > 0 else None


def _decode_rate(turns: pd.DataFrame) -> float | None:
    """Tokens after the first by the seconds after prefill."""
    seconds, emitted = (turns.wall_s - turns.prefill_s).sum(skipna=False), turns.emitted.sum(skipna=False)
    return float(emitted / seconds) if np.isfinite(seconds) and emitted > 0 else None


def phase_split(turns: pd.DataFrame) -> dict[str, float | None]:
    """Milliseconds per step spent drafting, verifying and in between; overhead's share of wall; prefill per turn."""
    none = dict.fromkeys(("prefill_ms", "draft_ms", "verify_ms", "overhead_ms", "overhead_share"))
    sums = turns[["wall_s", "prefill_s", "draft_s", "verify_s", "steps"]].sum(skipna=False)
    if not np.isfinite(sums.to_numpy(dtype=float)).all() or not len(turns):
        return none
    overhead = sums.wall_s - sums.prefill_s - sums.draft_s - sums.verify_s
    per_step = 1e3 / sums.steps if sums.steps else np.nan
    return {
        "prefill_ms": float(1e3 * sums.prefill_s / len(turns)),
        "draft_ms": finite(sums.draft_s * per_step),
        "verify_ms": finite(sums.verify_s * per_step),
        "overhead_ms": finite(overhead * per_step),
        "overhead_share": float(overhead / sums.wall_s),
    }


def finite(value: float) -> float | None:
    """The value; None for one that is not finite."""
    return float(value) if np.isfinite(value) else None


def paired_turns(run: Run) -> tuple[pd.DataFrame, pd.DataFrame | None, int]:
    """Answers and baseline over the same (question, repeat) pairs, and how many of these are no pairs.

    Of a pair both sides have every turn, asked with the same tokens as far as both were recorded. Questions with a
    failed or skipped turn are left out as well, and so are the columns BULKY, which no figure needs.
    """
    sides = [run.answers, *([] if run.baseline is None else [run.baseline])]
    sides = [turns[~turns.question_id.isin(run.failures.question_id)] for turns in sides]
    numbers = [column for column in run.answers if column not in BULKY]
    if run.baseline is None:
        return sides[0][numbers], None, 0
    keys = [list(turns[["question_id", "repeat", "turn"]].itertuples(index=False, name=None)) for turns in sides]
    asked = [dict(zip(own, turns.prompt_sha256, strict=True)) for own, turns in zip(keys, sides, strict=True)]
    odd = {key[:2] for key in asked[0].keys() ^ asked[1].keys()}
    odd |= {key[:2] for key, prompt in asked[0].items() if _differ(prompt, asked[1].get(key))}
    ours, theirs = (
        turns.loc[[key[:2] not in odd for key in own], numbers] for own, turns in zip(keys, sides, strict=True)
    )
    return ours, theirs, len(odd)


def _differ(prompt: Any, other: Any) -> bool:
    """Whether two hashes are known, and not the same."""
    return isinstance(prompt, str) and isinstance(other, str) and prompt != other


def summarise_turns(answers: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, Any]:
    """All figures of one set of turns; baseline: the same questions and repeats, or None."""
    steps = answers.steps.sum(skipna=False)
    counted = bool(np.isfinite(steps)) and steps > 0
    verdicts = answers.verdict.fillna("unchecked").value_counts()
    row: dict[str, Any] = {
        "questions": int(answers.question_id.nunique()),
        "turns": int((~answers.duplicated(["question_id", "turn"])).sum()),
        "repeats": int(answers.repeat.nunique()),
        "tokens": int(answers.new_tokens.sum()),
        "steps": int(steps) if counted else None,
        "cr": float(answers.emitted.sum() / steps) if counted else None,
        "ctar": [float(answers[f"over_{w}"].sum() / steps) if counted else None for w in CTAR_POSITIONS],
        "drafted_per_step": finite(answers.drafted.sum(skipna=False) / steps) if counted else None,
    }
    row |= _speedups(answers, baseline)
    row |= {"step_ms": _milliseconds(decode_seconds_per_step(answers))} | phase_split(answers)
    row |= {name: int(verdicts.get(name, 0)) for name in ("equal", "near_tie", "mismatch", "unchecked")}
    row |= readings(answers)
    return row | {f"baseline_{name}": value for name, value in readings(baseline).items()}


def _speedups(answers: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(SPEED_FIGURES) | {"repeat_speedups": []}
    if not len(answers):
        return found | {"tokens_per_s": None}
    by_repeat = question_rates(answers)
    rates = by_repeat.mean(axis=1).to_numpy()
    found["tokens_per_s"] = float(rates.mean())
    if baseline is None:
        return found
    baseline_by_repeat = question_rates(baseline)
    baseline_rates = baseline_by_repeat.mean(axis=1).to_numpy()
    plain = bca_interval(lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis), rates, baseline_rates)
    paired = ratio_interval(rates / baseline_rates)
    every = by_repeat.notna().all(axis=1)  # repeats are compared over the same questions
    repeats = [
        float(by_repeat[r][every].mean() / baseline_by_repeat[r][every].mean())
        for r in by_repeat
        if every.any() and r in baseline_by_repeat
    ]
    ours, theirs = _decode_rate(answers), _decode_rate(baseline)
    our_step, their_step = decode_seconds_per_step(answers), decode_seconds_per_step(baseline)
    return found | {
        "baseline_tokens_per_s": float(baseline_rates.mean()),
        "speedup": speedup(rates, baseline_rates),
        "speedup_low": plain and plain.low,
        "speedup_high": plain and plain.high,
        "speedup_pooled": speedup_pooled(answers, baseline),
        "speedup_paired": geometric_mean(rates / baseline_rates),
        "speedup_paired_low": paired and paired.low,
        "speedup_paired_high": paired and paired.high,
        "decode_speedup": ours / theirs if ours and theirs else None,
        # CR / decode speedup - 1 with every vanilla step emitting one token is the ratio of step times, minus 1.
        "step_cost": our_step / their_step - 1 if our_step and their_step else None,
        "baseline_step_ms": _milliseconds(their_step),
        "repeat_speedups": repeats,
        "spread": spread(repeats),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def readings(turns: pd.DataFrame | None) -> dict[str, int | float | None]:
    """What the device said of one side's turns."""
    turns = turn_frame([]) if turns is None else turns
    largest = (turns.peak_memory_bytes.max(), turns.temperature_c.max())
    peak, temperature = (int(value) if np.isfinite(value) else None for value in largest)
    energy, tokens = turns.energy_millijoules.sum(skipna=False), turns.new_tokens.sum()
    told = len(turns) and turns.throttled.notna().all()
    return {
        "peak_memory_bytes": peak,
        "joules_per_token": finite(energy / 1e3 / tokens) if tokens else None,
        "sm_mhz": finite(turns.sm_mhz.mean()),
        "temperature_c": temperature,
        "throttled_turns": int((turns.throttled != NOT_THROTTLED).sum()) if told else None,
    }


def _mismatches(turns: pd.DataFrame) -> int:
    """All that were found: a question that failed in another repeat is in no speed, and not lossless all the same."""
    return int((turns.verdict == "mismatch").sum())


def question_table(run: Run) -> pd.DataFrame:
    """By question: subtask, speedup, tokens_per_s, cr, tokens (of one repeat) and the worst verdict of its turns."""
    answers, baseline, _ = paired_turns(run)
    by_question = answers.groupby("question_id")
    table = by_question[["steps", "emitted"]].sum(min_count=1)
    table["subtask"] = by_question.subtask.first()
    table["tokens"] = by_question.new_tokens.sum() / by_question.repeat.nunique()
    table["cr"] = table.emitted / table.steps
    table["tokens_per_s"] = question_rates(answers).mean(axis=1)
    table["speedup"] = table.tokens_per_s / question_rates(baseline).mean(axis=1) if baseline is not None else np.nan
    severity = answers.verdict.map({"equal": 1, "near_tie": 2, "mismatch": 3}).fillna(0)
    table["verdict"] = severity.groupby(answers.question_id).max().map(dict(enumerate(VERDICTS)))
    return table


def step_bytes(info: Mapping[str, Any]) -> int | None:
    """Bytes of the weights that a step reads; None: not recorded. Older runs recorded only what all of them take."""
    return info.get("step_bytes") or info.get("weight_bytes")


def memory_share(info: Mapping[str, Any], turns: pd.DataFrame | None) -> float | None:
    """Time of reading weights and cache once a step, by the time plain decoding's steps took; None: not recorded.

    The cache is read as long as it is on average: the prompt and half of what is generated.
    """
    weights, each, bandwidth = step_bytes(info), info.get("kv_bytes_per_token"), info.get("read_bytes_per_s")
    if turns is None or not len(turns) or not (weights and each and bandwidth):
        return None
    seconds = (turns.wall_s - turns.prefill_s).sum(skipna=False)
    slots = (turns.steps * (turns.prompt_tokens + turns.new_tokens / 2)).sum(skipna=False)
    least = (weights * turns.steps.sum(skipna=False) + each * slots) / bandwidth
    return float(least / seconds) if np.isfinite(least) and seconds > 0 else None


def summarise(run: Run) -> dict[str, Any]:
    """The figures of metrics.json: per subtask and overall, with failures. JSON-able.

    Overall CR pools all steps and the overall speedup takes all questions, as Spec-Bench does; speedup_average is the
    plain mean of the six subtasks' speedups that the paper's Table 1 prints, and is None unless all six were measured.
    """
    answers, baseline, lacking = paired_turns(run)
    subtasks = {}
    for name in ordered_subtasks(answers.subtask.unique()):
        theirs = None if baseline is None else baseline[baseline.subtask == name]
        subtasks[name] = summarise_turns(answers[answers.subtask == name], theirs)
        subtasks[name]["mismatch"] = _mismatches(run.answers[run.answers.subtask == name])
        subtasks[name]["baseline_memory_share"] = memory_share(run.info, theirs)
    overall = summarise_turns(answers, baseline) | {"baseline_memory_share": memory_share(run.info, baseline)}
    overall["mismatch"] = _mismatches(run.answers)
    speedups = [subtasks[s]["speedup"] for s in SUBTASKS if s in subtasks]
    complete = len(speedups) == len(SUBTASKS) and None not in speedups
    statuses = run.failures.drop_duplicates(["question_id", "status"]).status.value_counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "model": run.model,
        "method": run.method,
        "demonstration": bool(run.info.get("demonstration", False)),
        "failed_questions": int(statuses.get("failed", 0)),
        "skipped_questions": int(statuses.get("skipped", 0)),
        "unpaired": lacking,
        "doubtful_drafts": int(answers.doubtful.sum()),
        "extra_parameters": run.info.get("extra_parameters"),
        "datastore_bytes": run.info.get("datastore_bytes"),
        "overall": overall | {"speedup_average": float(np.mean(speedups)) if complete else None},
        "subtasks": subtasks,
    }
