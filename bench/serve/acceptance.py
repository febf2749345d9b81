"""What servers tell of acceptance, in this harness's terms: steps, CR and CTAR. Every engine counts in its own way.

A step is a target pass after prefill and emits its accepted drafts and one token more, so an answer of n tokens with a
accepted drafts took n - 1 - a steps: CR = (n - 1) / (n - 1 - a), whatever an engine counts as a step of its own. An
engine counts what it accepted beyond an answer's end too; then there were more steps, at least those with a draft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.frame import CTAR_POSITIONS

Step = tuple[int, int]  # drafted and emitted tokens


@dataclass(frozen=True)
class Acceptance:
    """What is known of an answer, or of all answers of a block. None: the server does not say.

    drafts: steps that had a draft. deeper: of how many steps more than w drafts were accepted, w = 0, 1, ... up to the
    deepest.
    """

    accepted: int | None = None
    drafted: int | None = None
    steps: int | None = None
    deeper: tuple[int, ...] | None = None
    drafts: int | None = None

    def __post_init__(self) -> None:
        given = (self.accepted, self.drafted, self.steps, self.drafts)
        counts = (*(value for value in given if value is not None),)
        if any(count < 0 for count in (*counts, *(self.deeper or ()))):
            raise ValueError("a count of acceptance is negative")

    def all_steps(self, new_tokens: int) -> int | None:
        """Target passes after prefill of `new_tokens` tokens, those without a draft included."""
        if new_tokens <= 1:
            return None
        if self.steps is not None or self.accepted is None:
            return self.steps
        return max(new_tokens - 1 - self.accepted, self.drafts or 0, *(self.deeper or ())) or None

    def row(self, new_tokens: int, answers: int = 1) -> dict[str, int | None]:
        """Steps, drafted and emitted tokens and steps that emitted more than w, of so many tokens in `answers`."""
        steps = self.all_steps(new_tokens - (answers - 1))
        found = {"steps": steps, "drafted": self.drafted, "emitted": None if steps is None else new_tokens - answers}
        depths = dict(enumerate(self.deeper or (), start=1))
        known = self.deeper is not None and steps is not None
        return found | {f"over_{w}": depths.get(w, 0) if known else None for w in CTAR_POSITIONS}


def of_histogram(counts: Sequence[Any], **known: int | None) -> Acceptance:
    """From how many steps accepted 0, 1, 2, ... drafts. Raises ValueError where that is no list of counts."""
    if not all(type(count) is int for count in counts):
        raise ValueError("a histogram of acceptance holds something else than counts")
    deeper = tuple(sum(counts[place:]) for place in range(1, len(counts)))
    accepted = sum(place * count for place, count in enumerate(counts))
    return Acceptance(**{"accepted": accepted, "drafts": sum(counts), **known}, deeper=deeper)


def of_vllm(found: Mapping[str, Any]) -> Acceptance:
    """metrics.speculative_decoding of vLLM's answers (documentation of v0.32; --per-request-spec-decode-metrics).

    Its steps are those that had a draft; the others are found by the number of tokens.
    """
    return of_histogram(found["acceptance_histogram"], drafted=int(found["num_draft_tokens"]))


def of_sglang(found: Mapping[str, Any]) -> Acceptance | None:
    """meta_info of SGLang's answers (v0.5, by its source); None where nothing was verified.

    Every step verifies. The same counts had three names: accept_token_num, accepted_drafts, num_correct_drafts.
    """
    if not found.get("spec_verify_ct"):
        return None
    steps = int(found["spec_verify_ct"])
    names = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
    accepted = next((int(found[name]) for name in names if name in found), None)
    names = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
    drafted = next((int(found[name]) for name in names if name in found), None)
    counts = found.get("spec_correct_drafts_histogram") or found.get("spec_accept_histogram")
    if counts:
        return of_histogram(counts, drafted=drafted, steps=steps)
    return Acceptance(accepted, drafted, steps)


def of_llama_cpp(timings: Mapping[str, Any]) -> Acceptance | None:
    """timings of llama.cpp's answers; None where it drafted nothing, and so does not say."""
    if "draft_n" not in timings:
        return None
    return Acceptance(int(timings.get("draft_n_accepted", 0)), int(timings["draft_n"]))


SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
POSITION = re.compile(r'position="(\d+)"')
COUNTERS = {
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "drafted",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total": "position",
    "vllm:generation_tokens_total": "tokens",
}
Counters = dict[str, float]


def read_counters(text: str) -> Counters:
    """vLLM's counters of a Prometheus page, summed over engines and models; by position as position_0 and so on."""
    found: Counters = {}
    for sample in SAMPLE.finditer(text):
        if name := COUNTERS.get(sample["name"]):
            if name == "position" and (place := POSITION.search(sample["labels"] or "")):
                name = f"position_{place[1]}"
            found[name] = found.get(name, 0.0) + float(sample["value"])
    return found


def of_counters(before: Counters, after: Counters) -> Acceptance | None:
    """What was accepted between two readings; None where one of them lacks it, or a server began anew in between."""
    grown = {name: round(value - before.get(name, 0.0)) for name, value in after.items()}
    if "accepted" not in before or "accepted" not in after or min(grown.values()) < 0:
        return None
    places = sorted(int(name.removeprefix("position_")) for name in grown if name.startswith("position_"))
    deeper = tuple(grown[f"position_{place}"] for place in places) if places else None
    return Acceptance(grown["accepted"], grown.get("drafted"), deeper=deeper, drafts=grown.get("drafts"))


@dataclass(frozen=True)
class Definition:
    """What somebody calls acceptance: its name there, what it counts, and its value for a trace of steps."""

    where: str
    name: str
    counts: str
    here: str
    value: Callable[[Sequence[Step]], float]


def _accepted(steps: Sequence[Step]) -> int:
    return sum(emitted - 1 for _, emitted in steps)


def _drafted(steps: Sequence[Step]) -> int:
    return sum(drafted for drafted, _ in steps)


def _emitted(steps: Sequence[Step]) -> int:
    return sum(emitted for _, emitted in steps)


def _with_prefill(steps: Sequence[Step]) -> float:
    return (1 + _emitted(steps)) / (1 + len(steps))


def _sglang_rate(steps: Sequence[Step]) -> float:
    return _accepted(steps) / (len(steps) * max(drafted for drafted, _ in steps))


DEFINITIONS = (
    Definition("Kangaroo's paper, and here", "CR", "tokens after the prefill's, by all target passes after prefill",
               "as it is", lambda steps: _emitted(steps) / len(steps)),
    Definition("Spec-Bench", "mean accepted tokens", "the mean of accept_lengths, where several methods list the "
               "prefill's token as a first entry of 1", "CR, once that entry is left out",
               _with_prefill),
    Definition("SPEED-Bench (specdec_bench)", "Average AL", "tokens streamed at a time, the prefill's among them",
               "CR, once the prefill's is left out", _with_prefill),
    Definition("vLLM", "mean acceptance length", "1 + accepted by passes that had a draft; the others are left out",
               "CR = (n − 1) / (n − 1 − accepted)",
               lambda steps: 1 + _accepted(steps) / sum(drafted > 0 for drafted, _ in steps)),
    Definition("vLLM", "draft acceptance rate", "accepted by drafted tokens", "not CR: a short draft raises it",
               lambda steps: _accepted(steps) / _drafted(steps)),
    Definition("SGLang", "spec_accept_length", "all tokens, the prefill's included, by verifying passes",
               "CR = (n − 1) / spec_verify_ct", lambda steps: (1 + _emitted(steps)) / len(steps)),
    Definition("SGLang", "spec_accept_rate", "accepted by passes times the longest draft, were it drafted or not",
               "not CR", _sglang_rate),
    Definition("llama.cpp", "draft acceptance", "draft_n_accepted by draft_n; it tells no number of passes",
               "CR = (n − 1) / (n − 1 − draft_n_accepted)", lambda steps: _accepted(steps) / _drafted(steps)),
)  # fmt: skip
# The trace that the page's table computes every definition for: five passes, one of them without a draft.
TRACE: tuple[Step, ...] = ((4, 3), (4, 1), (0, 1), (4, 5), (2, 2))
