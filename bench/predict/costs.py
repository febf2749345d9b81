"""What a step costs: by the run's own times, by bench.speed's passes, or by the roofline of a card.

A vanilla step is one pass of one row. A step of a method is a pass over `drafted + 1 + extra` rows, of the layers that
its draft has not run already and the head, and a draft of `a + b * drafted` seconds, and overhead.

own: least squares over the turns that were recorded: verify over steps and rows, draft over steps and drafted tokens.
    A pass of one row takes at least what vanilla's does, of the layers that it runs.
speed: passes as bench.speed timed them, between its numbers of rows by straight lines; vanilla, draft and overhead as
    in the turns that it ran of the method, and verifying by least squares over their steps and passes. Of a method
    that it did not run, draft and overhead take as many vanilla passes as in the run: that holds where both machines
    are bound alike, and is a guess elsewhere.
    On the fixed engine a pass of either kind has as many rows as it was filled up to.
card: a pass takes the longer of reading its weights at the peak bandwidth and multiplying them at the peak rate. A
    draft reads its extra parameters, and the target layers and head that it runs, once a pass of the draft: Medusa and
    Hydra have one a step, the EAGLEs one a level of their tree, other chains one a token; a lookup reads nothing.
    With early exit the last candidate goes through the first layers as well, to be verified by the others. It is no
    forecast of an implementation: there is no overhead, and no keys and values are read (short contexts).
    Where run.json has no `head_bytes` (older runs) the head that a draft runs is left out too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import published
from bench.metrics import step_bytes
from bench.records.identity import environment
from bench.records.lines import Row
from bench.settings import CUSTOM
from bench.speed.engine import PASSES
from methods.errors import UserError, nearest

Array = np.ndarray
EXITING = ("kangaroo", "layerskip", "kangaroo_tree")  # draft with the target's first layers, and verify with the rest
OWN_HEAD = ("kangaroo_head", "mlp_only")  # variants of Kangaroo's adapter that do not use the target's head
EAGLES = ("eagle", "eagle2", "eagle3")
HEADLESS = ("eagle", "eagle2")  # draft with the target's head, once a level
CHAINED = ("kangaroo", "layerskip", "sps")  # one pass of the draft a drafted token
CHAINS = (*CHAINED, "pld", "sam", "hf_prompt_lookup")  # what they draft by themselves is a chain
KINDS = {*EXITING, *EAGLES, *CHAINS, "medusa", "hydra", "lookahead", "rest", "recycling", "vanilla", "hf_generate"}
OTHERS = ("fallback", "static")  # settings of sam that let something else draft
EAGLE_LEVELS = 5  # of its published tree
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def head_share(info: Mapping[str, Any]) -> float:
    """Of the weights that a step reads: the head, which every pass runs, whatever its layers. 0: not recorded."""
    return (info.get("head_bytes") or 0) / (step_bytes(info) or 1)


def _kind(method: str, target: str) -> str:
    """What a method is, whatever its YAML is called: the module of its class, if that is one of ours."""
    ours, _, name = target.partition(".")
    module = name.partition(".")[0]
    return "" if ours != "methods" else method if module in ("", "hf") else module


@dataclass(frozen=True)
class Draft:
    """What of a run's configuration decides its costs."""

    method: str  # as its run is called
    kind: str  # what drafts, as below; "": nobody here knows
    chain: bool  # whether a draft can be cut short
    share: float | None  # of the weights that a vanilla step reads, in a pass that verifies; None: not recorded
    extra_rows: int  # rows of that pass that are not candidates
    fixed: bool = False  # whether the run was on the fixed engine

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Draft:
        settings = (info.get("config") or {}).get("method") or {}
        method, layers = str(info.get("method")), info.get("layers")
        kind = _kind(method, str(settings.get("_target_", "methods.")))
        share: float | None = 1.0
        extra = 0
        if kind in EXITING:
            known = layers and "exit_layer" in settings
            share = 1 - (1 - head_share(info)) * settings["exit_layer"] / layers if known else None
        if kind == "lookahead" and {"level", "window"} <= settings.keys():
            extra = (settings["level"] - 1) * settings["window"] - 1
        chain = kind in CHAINS and not any(settings.get(key) for key in OTHERS)
        return cls(method, kind, chain or settings.get("tree") == "chain", share, extra, info.get("engine") == "fixed")

    @property
    def foreign(self) -> bool:
        """Whether it decodes with transformers' engine, which fills nothing up."""
        return self.kind.startswith("hf_")

    @property
    def one_by_one(self) -> bool:
        """Whether every drafted token is a pass of the draft."""
        return self.kind in CHAINED or (self.chain and self.kind in EAGLES)

    def rows(self, drafted: Array) -> Array:
        """Of the passes that verify so many candidates."""
        return drafted + 1 + self.extra_rows

    def verified_share(self) -> float:
        """Raises UserError where it was not recorded."""
        if self.share is None:
            raise UserError("RUN: run.json has no layers, so a pass from the exit layer on is unknown elsewhere")
        return self.share


def filled(rows: Array) -> Array:
    """The rows that passes of so many have on the fixed engine."""
    from methods.engine.fixed import ROWS, row_bucket

    return np.array([count if count > ROWS[-1] else row_bucket(count) for count in rows.tolist()])


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a step. verify: rows [steps] -> seconds [steps]."""

    vanilla: float  # one step of the baseline
    verify: Callable[[Array], Array]
    draft_step: float
    draft_token: float
    overhead: float


@dataclass(frozen=True)
class Times:
    """What turns of one side took: candidates of every step, an array a turn, and seconds [turns]."""

    drafted: Sequence[Array]
    prefill_s: Array
    draft_s: Array
    verify_s: Array
    wall_s: Array

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Times:
        """Of recorded turns. Raises UserError where there are none, or phases or drafted tokens were not recorded."""
        parts = ("prefill_s", "draft_s", "verify_s", "drafted")
        if not rows or any(getattr(row, part) is None for row in rows for part in parts):
            raise UserError("RUN: has no baseline, or no draft and verify times, to predict from")
        seconds = [(row.prefill_s, row.draft_s, row.verify_s, row.wall_s) for row in rows]
        return cls([row.drafted for row in rows], *np.array(seconds, dtype=float).T)

    @property
    def steps(self) -> Array:
        """Their number [turns]."""
        return np.array([len(steps) for steps in self.drafted], dtype=float)

    def total(self, each: Callable[[Array], Array]) -> Array:
        """Sums over the steps of a turn [turns] of what is made of their candidates."""
        return np.array([float(np.sum(each(steps))) for steps in self.drafted])

    def decoding_s(self) -> float:
        """Seconds without prefill."""
        return float((self.wall_s - self.prefill_s).sum())


def _fit(steps: Array, counted: Array, seconds: Array) -> tuple[float, float]:
    """Seconds a step and seconds a counted unit; without variation of their ratio all goes to the step.

    Least squares divide the time and may lose some where one turn was slow; the sum of all is kept.
    """
    ratios = counted[steps > 0] / steps[steps > 0]
    if not len(ratios) or np.ptp(ratios) < 1e-9:
        return float(seconds.sum() / max(steps.sum(), 1)), 0.0
    step, unit = np.linalg.lstsq(np.stack([steps, counted], 1), seconds, rcond=None)[0]
    if unit < 0 or step < 0:  # noise: through the origin, by what is not negative
        unit = 0.0 if unit < 0 else float(seconds.sum() / max(counted.sum(), 1))
        step = 0.0 if unit else float(seconds.sum() / max(steps.sum(), 1))
    whole = float(step * steps.sum() + unit * counted.sum())
    kept = float(seconds.sum()) / whole if whole else 1.0
    return float(step) * kept, float(unit) * kept


def _fit_draft(answers: Times, draft: Draft) -> tuple[float, float]:
    """Seconds of drafting a step and a drafted token. Where all steps draft as many, the passes of a chain are alike.

    With early exit there is one more than drafted tokens: the last goes through the first layers as well.
    """
    tokens = answers.total(lambda drafted: drafted)
    step, token = _fit(answers.steps, tokens, answers.draft_s)
    if draft.one_by_one and not token and tokens.any():
        more = float(draft.kind in EXITING)
        token = float(answers.draft_s.sum() / (tokens.sum() + more * answers.steps.sum()))
        step = more * token
    return step, token


def own(answers: Times, baseline: Times, draft: Draft) -> Costs:
    """From the times of both sides."""
    of_pass = filled if draft.fixed and not draft.foreign else np.asarray
    rows = answers.total(lambda drafted: of_pass(draft.rows(drafted)))
    per_step, per_row = _fit(answers.steps, rows, answers.verify_s)
    least = (draft.share or 0.0) * float(baseline.verify_s.sum() / max(baseline.steps.sum(), 1))
    if per_row and per_step + per_row < least:  # turns that differ little in rows leave the line where it likes
        more = max(float(answers.verify_s.sum() - least * answers.steps.sum()), 0.0)
        per_row = more / float((rows - answers.steps).sum())
        per_step = float(answers.verify_s.sum() - per_row * rows.sum()) / float(answers.steps.sum())
    draft_step, draft_token = _fit_draft(answers, draft)
    left = answers.decoding_s() - float(answers.draft_s.sum() + answers.verify_s.sum())
    return Costs(
        vanilla=baseline.decoding_s() / max(baseline.steps.sum(), 1),
        verify=lambda rows: per_step + per_row * of_pass(rows),
        draft_step=draft_step,
        draft_token=draft_token,
        overhead=left / max(answers.steps.sum(), 1),
    )


def _read_times(side: Mapping[str, Any]) -> Times:
    """As bench.speed writes them. Raises KeyError, TypeError or ValueError."""
    drafted = [np.array(steps, dtype=np.int64) for steps in side["drafted"]]
    return Times(
        drafted, *(np.array(side[f"{part}_s"], dtype=float) for part in ("prefill", "draft", "verify", "wall"))
    )


@dataclass(frozen=True)
class Measured:
    """What bench.speed found: seconds of a pass by rows and, where it ran the method, both sides' turns."""

    rows: Array
    seconds: Array
    turns: tuple[Times, Times] | None
    settings: Mapping[str, Any]  # the method's
    machine: Mapping[str, Any]  # where that was: its environment, None for what was not recorded
    notes: tuple[str, ...] = ()  # what the file does not know, or warns of

    @classmethod
    def read(cls, file: Path, model: str, method: str, dtype: str | None, threads: int | None) -> Measured:
        """Of this model, in the section with this dtype and these threads; of a machine with others, in its first.

        Raises UserError.
        """
        try:
            if file.exists() and not file.is_file():
                raise UserError(f"cost={file}: not a file")
            record = json.loads(file.read_text(encoding="utf-8"))
            sections, of = record["sections"], record.get("model") or record["config"]["model"]["name"]
            if of not in (model, CUSTOM):  # older files do not say which model a custom one was
                raise UserError(f"cost={file}: measured with {of}; RUN is of {model}")
            found = [s for s in sections if s["dtype"] == dtype]
            found = [s for s in found if s["threads"] == threads] or found
            if not found:
                has = sorted({s["dtype"] for s in sections})
                raise UserError(f"cost={file}: has no passes in {dtype}; it has {has}")
            rows, seconds = np.array([(int(count), ms / 1e3) for count, ms in found[0]["pass_ms"].items()]).T
            ran = found[0].get("methods", {}).get(method, {})
            sides = [_read_times(side) for side in ran["turns"].values()] if "turns" in ran else []
            turns = (sides[0], sides[1]) if sides else None
            machine = environment(record | found[0])
            uncaptured = found[0].get("uncaptured") or {}
            notes = [uncaptured[key] for key in (PASSES, method) if key in uncaptured]
            notes += ["does not say of which custom model it is"] if of == CUSTOM != model else []
            return cls(rows, seconds, turns, ran.get("settings", {}), machine, tuple(notes))
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"cost={file}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"cost={file}: not a file that bench.speed wrote ({why})") from error

    def pass_s(self, wanted: Array, draft: Draft) -> Array:
        """Seconds of passes of so many rows: by straight lines, the last of which goes on."""
        rows, seconds = self.rows, self.seconds
        if self.machine.get("engine") == "fixed" and not draft.foreign:
            wanted, (rows, which) = filled(wanted), np.unique(filled(rows), return_inverse=True)
            seconds = np.bincount(which, self.seconds) / np.bincount(which)
        inside, last = np.interp(wanted, rows, seconds), rows[-1]
        slope = np.diff(seconds[-2:]) / np.diff(rows[-2:]) if len(rows) > 1 else 0.0
        return inside + np.maximum(wanted - last, 0) * slope

    def costs(self, draft: Draft, answers: Times, baseline: Times) -> Costs:
        """The method's own here; of one that was not run, the draft and overhead of the recorded turns, scaled."""
        share = draft.verified_share()
        if self.turns is None:
            found = own(answers, baseline, draft)
            scale = self.seconds[0] / (baseline.verify_s.sum() / max(baseline.steps.sum(), 1) or found.vanilla)
            beyond, times = 0.0, 1.0
        else:
            ran, found, scale = self.turns[0], own(*self.turns, draft), 1.0
            # A pass in a turn takes longer than one by itself: a longer context, and choosing and accepting behind it.
            passes = ran.total(lambda drafted: share * self.pass_s(draft.rows(drafted), draft))
            beyond, times = _fit(ran.steps, passes, ran.verify_s)
            if not times and passes.any():  # as many rows in every step, or noise
                beyond, times = 0.0, float(ran.verify_s.sum() / passes.sum())
        return Costs(
            vanilla=found.vanilla * scale,
            verify=lambda rows: times * share * self.pass_s(rows, draft) + beyond,
            draft_step=found.draft_step * scale,
            draft_token=found.draft_token * scale,
            overhead=found.overhead * scale,
        )


@dataclass(frozen=True)
class Card:
    """Published peaks of a GPU."""

    name: str
    bytes_per_s: float
    flops: Mapping[str, float]  # by dtype; without those that it does not compute in

    def pass_s(self, weight_bytes: float, dtype: str, rows: Array) -> Array:
        """Seconds [n] of one pass of rows [n] over weights: two operations a weight and row."""
        operations = 2 * weight_bytes / ITEM_BYTES[dtype] * rows
        return np.maximum(weight_bytes / self.bytes_per_s, operations / self.flops[dtype])


def cards() -> dict[str, Card]:
    """The cards of bench/reference/cards.csv by name."""
    return {
        row.card: Card(
            row.card, row.gb_per_s * 1e9, {t: peak * 1e12 for t in ITEM_BYTES if (peak := getattr(row, t)) > 0}
        )
        for row in published.cards().itertuples()
    }


def card_named(name: str) -> Card:
    """Raises UserError for a card that is not there."""
    found = cards()
    if name not in found:
        raise UserError(f"card={name}: unknown; {nearest(name, found)}")
    return found[name]


def _passes(kind: str, settings: Mapping[str, Any]) -> int:
    """Passes of a draft that is no chain of single tokens. Raises UserError where the run does not say how many."""
    if kind not in KINDS:
        raise UserError("RUN: of a method from outside, nobody here knows what a draft reads; cost=FILE predicts any")
    if kind == "sam" and settings.get("fallback"):
        raise UserError(
            "RUN: does not record which steps the fallback drafted, so what drafting takes is unknown elsewhere"
        )
    if kind == "kangaroo_tree":
        raise UserError("RUN: records no levels of Kangaroo's tree, so the passes of its draft are unknown elsewhere")
    if kind == "eagle":
        tree = settings.get("tree")
        return max(map(len, tree)) if isinstance(tree, list) else EAGLE_LEVELS
    depth = settings.get("depth")  # of EAGLE-2 and EAGLE-3: levels behind the first
    return depth + 1 if isinstance(depth, int) else 1


def on_card(card: Card, info: Mapping[str, Any], draft: Draft) -> Costs:
    """The card's roofline. Raises UserError where run.json does not say how large the target is."""
    weights, dtype = step_bytes(info), str(info.get("dtype"))
    if not weights or dtype not in ITEM_BYTES:
        raise UserError("RUN: run.json has no weight_bytes or dtype, so no card can be predicted")
    if dtype not in card.flops:
        raise UserError(f"card={card.name}: does not compute in {dtype}, as RUN does")
    share, settings = draft.verified_share(), (info.get("config") or {}).get("method") or {}
    exiting = (1 - share) * weights
    size = exiting + (info.get("extra_parameters") or 0) * ITEM_BYTES[dtype]
    if draft.kind in HEADLESS or (draft.kind in EXITING and settings.get("variant") not in OWN_HEAD):
        size += info.get("head_bytes") or 0
    a_pass, last = size / card.bytes_per_s, exiting / card.bytes_per_s
    return Costs(
        vanilla=float(card.pass_s(weights, dtype, np.array([1.0]))[0]),
        verify=lambda rows: share * card.pass_s(weights, dtype, rows),
        draft_step=last if draft.one_by_one else _passes(draft.kind, settings) * a_pass,
        draft_token=a_pass if draft.one_by_one else 0.0,
        overhead=0.0,
    )
