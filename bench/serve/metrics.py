"""Every number of a comparison of two servers, from its records: speed by load, its intervals, where it pays.

The speedup of a level is Spec-Bench's: the mean over questions of tokens per second of the answer, waiting included, by
the same mean of the plain server, with a 95 % BCa interval over questions. Throughput is a level's tokens by its
blocks' seconds. A value that was not measured is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.metrics import CONFIDENCE, RESAMPLES, bca_interval, expanded_confidence, finite, question_rates, speedup
from bench.records.directory import run_folders
from bench.records.frame import CTAR_POSITIONS
from bench.serve.acceptance import Acceptance
from bench.serve.records import SIDES, Records, ServeDirectory, read_acceptance, read_records
from bench.serve.words import warnings
from methods.errors import UserError, first_line

SCHEMA_VERSION = 1
PERCENTILES = (50, 90, 99)
VERDICTS = ("equal", "near_tie", "divergent")
COLUMNS = [
    *("question_id", "subtask", "repeat", "turn", "level", "block", "side", "status"),
    *("prompt_sha256", "new_tokens", "wall_s", "ttft_s", "times_s", "counts", "cached_tokens", "miscounted"),
    "acceptance",
]
BLOCK_COLUMNS = [
    *("level", "repeat", "block", "side", "wall_s", "client_cpu_share", "acceptance", "counted_tokens", "unrecorded"),
    *("tokens", "answers", "percentiles"),  # of a block whose requests were not recorded one by one
]
KEYS = ["question_id", "repeat", "turn"]
BLOCK = ["repeat", "block"]  # of a level
SLACK = 0.02  # share of a block's tokens by which its server's counters may be off before they are in no CR
Array = np.ndarray


def summarise(records: Records) -> dict[str, Any]:
    """The content of metrics.json, JSON-able: a row for each level that both servers have finished blocks of."""
    told = [{**line, "acceptance": read_acceptance(line.get("acceptance"))} for line in records.requests]
    requests = pd.DataFrame(told, columns=COLUMNS)
    servers = records.info.get("servers") or {}
    engine = (servers.get("speculative") or {}).get("engine")
    if engine == "llama_cpp" and requests.acceptance.notna().any():  # it is silent of an answer without a draft
        silent = (requests.side == "speculative") & (requests.status == "ok") & requests.acceptance.isna()
        requests.loc[silent, "acceptance"] = Acceptance(0, 0)
    blocks = _with_counts(requests, pd.DataFrame(records.blocks, columns=BLOCK_COLUMNS))
    needed = blocks.side.nunique() if records.info.get("imported") else len(SIDES)
    verdicts = pd.DataFrame(records.verdicts, columns=["level", "repeat", "question_id", "turn", "verdict"])
    config = records.info.get("config") or {}
    rows, rates = [], {}
    for level in config.get("concurrency") or sorted(requests.level.unique()):
        both, walls = _paired(requests[requests.level == level], blocks[blocks.level == level], needed)
        if len(walls):
            row, rates[level] = _level(both, walls, verdicts[verdicts.level == level])
            rows.append({"level": int(level), **row})
    found = {
        "schema_version": SCHEMA_VERSION,
        "model": str(records.info.get("model") or "unknown"),
        "name": str(records.info.get("method") or "unknown"),
        "demonstration": bool(records.info.get("demonstration", False)),
        "engine": engine,
        "sampled": bool(config.get("temperature")),
        "levels": rows,
        "crossing": crossing(rates),
    }
    return found | {"warnings": [*records.notes, *warnings(found)]}


@dataclass(frozen=True)
class Comparison:
    """What was measured of one pair of servers, and its figures."""

    records: Records
    metrics: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.metrics['model']} / {self.metrics['name']}"

    @classmethod
    def all_below(cls, results_dir: Path, notes: list[str]) -> list[Comparison]:
        """Every pair of servers below a results folder. What cannot be read is noted."""
        found: dict[Any, Comparison] = {}
        for folder in run_folders(results_dir / ServeDirectory.below, notes):
            try:
                records = read_records(folder)
                one = cls(records, summarise(records))
                same = frozenset(block["attempt"] for block in records.blocks) or folder
            except (UserError, KeyError, TypeError, ValueError) as error:
                notes.append(f"left out: {folder}: {first_line(error)}")
                continue
            first = found.setdefault(same, one)
            if first is not one:
                found[same], copy = (one, first) if one.records.size > first.records.size else (first, one)
                notes.append(f"left out: {copy.records.folder}: a copy of {found[same].records.folder}")
        return [*found.values()]


def _paired(requests: pd.DataFrame, blocks: pd.DataFrame, needed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A level's requests and blocks, as far as all sides that are needed have finished the block."""
    done = blocks[blocks.groupby(BLOCK).side.transform("nunique") == needed] if len(blocks) else blocks
    return requests[_holds(requests, done)], done


def _holds(lines: pd.DataFrame, blocks: pd.DataFrame) -> pd.Series:
    """Whether each line is of one of the blocks."""
    found = {*zip(blocks.repeat, blocks.block, strict=True)}
    return pd.Series([key in found for key in zip(lines.repeat, lines.block, strict=True)], lines.index, dtype=bool)


def _level(requests: pd.DataFrame, blocks: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """A level's figures, and tokens/s by question (rows) and side."""
    failed = requests.question_id[requests.status != "ok"].unique()
    whole = requests[~requests.question_id.isin(failed)]
    sides = [whole[whole.side == side] for side in SIDES]
    row: dict[str, Any] = {"questions": int(sides[0].question_id.nunique()), "failed": len(failed)}
    row |= {"repeats": int(blocks.repeat.nunique()), "turns": len(sides[0])}
    rates = pd.DataFrame({side: question_rates(turns).mean(axis=1) for side, turns in zip(SIDES, sides, strict=True)})
    ours, theirs = rates.dropna().to_numpy(dtype=float).T
    interval = bca_interval(lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis), ours, theirs)
    row |= {"speedup": speedup(ours, theirs) if len(ours) else None}
    row |= {"speedup_low": interval and interval.low, "speedup_high": interval and interval.high}
    for name, label, side, rate in zip(("", "baseline_"), SIDES, sides, rates.to_numpy(dtype=float).T, strict=True):
        row[f"{name}tokens_per_s"] = finite(rate.mean()) if len(rate) else None
        gaps = [np.diff(times) for times in side.times_s]
        row |= _percentiles(f"{name}ttft_ms", side.ttft_s) | _percentiles(f"{name}wall_ms", side.wall_s)
        row |= _percentiles(f"{name}token_ms", _seconds_by_token(side))
        row |= _percentiles(f"{name}gap_ms", np.concatenate([*gaps, []]))
        row[f"{name}cached_share"] = _share(side.cached_tokens)
        told = blocks.percentiles[blocks.side == label]  # those of several blocks have no common percentile
        if len(told) == 1 and told.notna().all():
            row |= {f"{name}{key}": value for key, value in told.iloc[0].items()}
    # A block without a failed request on either side, or one whose tokens were told as a whole.
    sound = blocks[~_holds(blocks, requests[requests.status != "ok"]) | blocks.tokens.notna()]
    row |= _throughput(requests, sound)
    row |= _acceptance(sides[0], sound[sound.side == "speculative"])
    judged = verdicts[~verdicts.question_id.isin(failed)]
    counts = verdicts[verdicts.index.isin(judged.index) | (verdicts.verdict == "divergent")].verdict.value_counts()
    row |= {name: int(counts.get(name, 0)) for name in VERDICTS}
    row["unchecked"] = len(sides[0].merge(sides[1], on=KEYS)) - len(judged)
    row["client_cpu_share"] = finite(blocks.client_cpu_share.max())
    row["miscounted"] = sum(one is True for one in whole.miscounted.astype(object))
    row["foreign_tokens"] = int(sound.foreign.sum()) if sound.foreign.notna().any() else None
    if blocks.tokens.notna().all():  # imported: answers were compared by nobody here, and may be told in sum only
        row |= dict.fromkeys((*VERDICTS, "unchecked", *(() if len(requests) else ("questions", "failed", "turns"))))
    return row, rates


def _seconds_by_token(side: pd.DataFrame) -> list[float]:
    """Of each answer, seconds from its first event to its last by the tokens that came after the first.

    An event brings a whole step's tokens, so the time between events says nothing of how fast tokens come. An event
    that does not say how many tokens it brought is taken for one.
    """
    found = []
    for times_s, counts, tokens in zip(side.times_s, side.counts, side.new_tokens, strict=True):
        after = tokens - (counts[0] if isinstance(counts, list) else 1)
        if len(times_s) > 1 and after > 0:
            found.append((times_s[-1] - times_s[0]) / after)
    return found


def _percentiles(name: str, seconds: Any) -> dict[str, float | None]:
    """Milliseconds at each of PERCENTILES; None where there is nothing."""
    values = np.asarray(seconds, dtype=float)
    found = np.percentile(values, PERCENTILES) * 1e3 if len(values) else [None] * len(PERCENTILES)
    return {f"{name}_p{p}": None if v is None else float(v) for p, v in zip(PERCENTILES, found, strict=True)}


def _share(cached: pd.Series) -> float | None:
    """Share of answers that took part of their prompt from a cache; None where the server does not say."""
    return float((cached.dropna() > 0).mean()) if cached.notna().any() else None


def _throughput(answers: pd.DataFrame, blocks: pd.DataFrame) -> dict[str, Any]:
    """All tokens by all seconds of the blocks, and the ratio of both sides with an interval over blocks."""
    counted = answers.groupby([*BLOCK, "side"]).new_tokens.sum()
    table = blocks.set_index([*BLOCK, "side"])[["wall_s", "tokens"]].join(counted)
    table["tokens"] = table.tokens.astype(float).fillna(table.new_tokens.astype(float)).fillna(0)
    table = table.unstack("side")
    missing = pd.Series(np.nan, index=table.index)
    parts = [
        table.get((column, side), missing).to_numpy(dtype=float) for side in SIDES for column in ("tokens", "wall_s")
    ]

    def ratio(ours: Array, our_s: Array, theirs: Array, their_s: Array, axis: int = -1) -> Array:
        sums = [part.sum(axis=axis) for part in (ours, our_s, theirs, their_s)]
        return sums[0] / sums[1] / (sums[2] / sums[3])

    both = all(np.isfinite(part).all() for part in parts) and parts[2].sum() > 0
    interval = bca_interval(ratio, *parts) if both else None
    return {
        "blocks": len(table),
        "throughput": finite(parts[0].sum() / parts[1].sum()) if len(table) else None,
        "baseline_throughput": finite(parts[2].sum() / parts[3].sum()) if len(table) else None,
        "throughput_ratio": float(ratio(*parts)) if both else None,
        "throughput_ratio_low": interval and interval.low,
        "throughput_ratio_high": interval and interval.high,
    }


def _acceptance(ours: pd.DataFrame, blocks: pd.DataFrame) -> dict[str, Any]:
    """CR and CTAR pooled over answers that say; else from the server's counters over whole blocks; else None."""
    told, left_out, used = ours[ours.acceptance.notna()], 0, blocks[:0]
    found: list[tuple[Acceptance, float, float]] = [
        *zip(told.acceptance, told.new_tokens, [1] * len(told), strict=True)
    ]
    source = "answers"
    anew = ~blocks.fits & (blocks.extra < 0)
    if not found and (blocks.acceptance.notna() | anew).any():
        fits = blocks.acceptance.notna() & blocks.fits
        used, left_out = blocks[fits], int((~fits).sum())
        total = _summed([read_acceptance(said) for said in used.acceptance])
        found = [(total, used.counted.sum(), used.answers.sum())] if total else []
        source = "the file" if used.tokens.notna().all() else "counters"
    table = pd.DataFrame([one.row(int(tokens), int(answers)) for one, tokens, answers in found], dtype=float)
    known = table[table.steps.notna()] if len(table) else table
    row = {"cr": None, "ctar": [None] * len(CTAR_POSITIONS), "draft_acceptance": None, "acceptance_from": None,
           "acceptance_answers": 0, "silent_answers": 0, "uncounted_blocks": left_out,
           "foreign_in_cr": source == "counters" and bool((used.foreign > 0).any())}  # fmt: skip
    if not len(known):
        return row
    steps = known.steps.sum()
    drafted = known.drafted.sum(skipna=False)
    deep = [known[f"over_{w}"].sum(skipna=False) / steps if steps else np.nan for w in CTAR_POSITIONS]
    return row | {
        "cr": finite(known.emitted.sum() / steps) if steps else None,
        "ctar": [finite(share) for share in deep],
        "draft_acceptance": finite((known.emitted - known.steps).sum() / drafted) if drafted else None,
        "acceptance_from": source,
        "acceptance_answers": len(known),
        "silent_answers": int((ours.new_tokens > 1).sum()) - len(known) if source == "answers" else 0,
    }


def _summed(found: Sequence[Acceptance | None]) -> Acceptance | None:
    """Several blocks' together; a count that one of them lacks, the sum lacks too."""
    parts = [one for one in found if one is not None]
    if not parts or len(parts) < len(found):
        return None
    counts = {
        name: None if None in (values := [getattr(one, name) for one in parts]) else sum(values)
        for name in ("accepted", "drafted", "steps", "drafts")
    }
    depths = {len(one.deeper or ()) for one in parts}
    deeper = tuple(map(sum, zip(*(one.deeper or () for one in parts), strict=True))) if len(depths) == 1 else ()
    return Acceptance(**counts, deeper=deeper or None)


def _with_counts(requests: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """All blocks, in the order asked, with `counted` tokens, by their server where it says, and `answers`.

    extra: tokens counted beyond those of the answers; NaN where the server publishes no counters. fits: whether this
    may be so of itself, as counters may lag by a step of each request under way and make up for it later, be these in
    the records or not. foreign: those that nothing makes up for, so others used the server. Far fewer: it began anew.
    """
    keys = ["level", *BLOCK, "side"]
    answered = blocks[keys].merge(requests.groupby(keys, as_index=False).new_tokens.agg(["sum", "count"]), "left", keys)
    own = answered["sum"].fillna(0).to_numpy(dtype=float)
    answers = blocks.answers.astype(float).fillna(pd.Series(answered["count"].to_numpy(dtype=float), blocks.index))
    counted = blocks.counted_tokens.astype(float)
    table = blocks.assign(
        answers=answers,
        counted=counted.fillna(blocks.tokens.astype(float)).fillna(pd.Series(own, blocks.index)),
        extra=counted - own,
    )
    failed = {*requests[requests.status != "ok"][keys].itertuples(index=False, name=None)}
    fits, foreign, owed = [], [], dict.fromkeys(SIDES, 0.0)  # owed: tokens of before that may be counted yet
    for one, tokens in zip(table.itertuples(), own, strict=True):
        step = 1 + len(one.acceptance.get("deeper") or ()) if isinstance(one.acceptance, dict) else 1
        told = (one.level, one.repeat, one.block, one.side) not in failed and np.isfinite(one.extra)
        under_way = min(one.level, one.answers) if told and np.isfinite(one.answers) else one.level
        late, share = float(under_way * step), SLACK * tokens
        before = max(owed[one.side], float(one.level * step) if one.unrecorded is True else 0.0)
        fits.append(not (one.extra < -max(share, late) or one.extra > max(share, before)))
        foreign.append(max(0.0, one.extra - before) if np.isfinite(one.extra) else np.nan)
        owed[one.side] = min(late, max(0.0, before - one.extra)) if told else late
    return table.assign(fits=pd.Series(fits, table.index, dtype=bool), foreign=pd.Series(foreign, table.index))


def crossing(rates: dict[int, pd.DataFrame], resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Requests at a time at which the speedup falls through 1, with a 95 % percentile interval over questions.

    rates: by level, tokens/s by question and side. Between levels the logarithm of the speedup is a straight line over
    that of the level. 0 stands for "below the lowest level" and None for "above the highest". Questions that all levels
    have are drawn together, with replacement; None where there are fewer than two levels or two questions.
    """
    levels = sorted(rates)
    shared = sorted(set.intersection(*({*rates[level].dropna().index} for level in levels))) if levels else []
    if len(levels) < 2 or len(shared) < 2:
        return None
    values = np.stack([rates[level].loc[shared, list(SIDES)].to_numpy() for level in levels])  # [levels, questions, 2]
    drawn = np.random.default_rng(0).integers(len(shared), size=(resamples, len(shared)))
    found = np.array([_falls(levels, values[:, draw].mean(axis=1)) for draw in drawn])
    tail = (1 - expanded_confidence(len(shared))) / 2
    low, high = np.quantile(found, [tail, 1 - tail], method="inverted_cdf")
    place = _falls(levels, values.mean(axis=1))
    bound = [None if np.isinf(value) else float(value) for value in (place, low, high)]
    return {"at": bound[0], "low": bound[1], "high": bound[2], "levels": [levels[0], levels[-1]],
            "questions": len(shared), "confidence": CONFIDENCE}  # fmt: skip


def _falls(levels: Sequence[int], means: Array) -> float:
    """Where the curve first falls to 1; 0 where it begins there, infinite where it never does. means [levels, 2]."""
    heights = np.log(means[:, 0] / means[:, 1])
    if heights[0] <= 0:
        return 0.0
    below = np.flatnonzero(heights <= 0)
    if not len(below):
        return np.inf
    after = int(below[0])
    part = heights[after - 1] / (heights[after - 1] - heights[after])
    ends = np.log(levels[after - 1]), np.log(levels[after])
    return float(np.exp(ends[0] + part * (ends[1] - ends[0])))
