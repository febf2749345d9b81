"""Answers for the page: texts shared by all methods, and each step's emitted tokens to colour them by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.digests import sha256
from bench.fidelity import shared
from bench.metrics import question_table
from bench.places import BENCH, ROOT
from bench.questions.formats import read_questions
from bench.records.frame import Run
from bench.records.identity import flatten
from bench.report.collect import Collection, Group
from bench.report.tables import title
from bench.sources import cached_file

Key = tuple[str, Any]  # subtask and id of a question
Place = tuple[str, Any, int]  # and which of the texts that question files have for it
BUILT_IN = BENCH / "assets" / "joey" / "question.jsonl"  # what runs of before there were question sets asked joey
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
LOOKUP = np.frombuffer(DIGITS.encode(), dtype=np.uint8)
BUDGET_BYTES = 3_800_000  # of the page's 5 MB, what answers and the per-question table may take
LIMITS = (None, 40, 20, 10, 5, 2, 0)  # answers shown of each subtask, until they fit


@dataclass
class Texts:
    """Distinct answers; a lossless method's is the baseline's, so it is stored once."""

    items: list[list[Any]] = field(default_factory=list)
    places: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def place(self, text: str, ids: np.ndarray | None, tokenizer: Any) -> int:
        key = (text, None if ids is None else ids.tobytes())
        if key not in self.places:
            self.places[key] = len(self.items)
            pieces = None if tokenizer is None or ids is None else token_texts(tokenizer, ids)
            if pieces is not None and "".join(pieces).strip() == text.strip():
                units = [len(piece.encode("utf-16-le")) // 2 for piece in pieces]  # a browser counts these
                self.items.append(["".join(pieces), _packed(np.array(units, dtype=np.int64))])
            else:
                self.items.append([text, ""])
        return self.places[key]


def _packed(values: np.ndarray) -> str:
    """Small numbers as one character each; a larger one as `~number~`."""
    if not len(values) or values.max() < len(DIGITS):
        return LOOKUP[values].tobytes().decode()
    return "".join(DIGITS[v] if v < len(DIGITS) else f"~{v}~" for v in values)


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text that each token adds; one inside an unfinished character adds nothing yet. tokenizer: tokenizers'."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    return [stream.step(tokenizer, int(token)) or "" for token in ids]


def load_tokenizer(run: Run) -> Any:
    """The checkpoint's tokenizer.json from its folder or the local cache, or None; nothing is downloaded."""
    model = run.config.get("model")
    if not isinstance(model, dict) or not model.get("path"):
        return None
    return _tokenizer(str(model["path"]), str(model["revision"]) if model.get("revision") else None)


@cache
def _tokenizer(path: str, revision: str | None) -> Any:
    from huggingface_hub import try_to_load_from_cache
    from tokenizers import Tokenizer

    try:
        folders = [Path(path).expanduser(), ROOT / path]
        file: Any = next((folder / "tokenizer.json" for folder in folders if folder.exists()), None)
        return Tokenizer.from_file(str(file or try_to_load_from_cache(path, "tokenizer.json", revision=revision)))
    except Exception:  # the libraries raise anything for odd names and files; the page does without a tokenizer
        return None


def prompts(run: Run) -> dict[Any, list[str]]:
    """Question texts by id from the run's own question file, where it is still there; nothing is downloaded."""
    if not {"data", "questions"} & run.config.keys():
        return {}
    known, wanted = flatten(run.config), run.info.get("questions_sha256")
    given = known.get("data.path") or known.get("questions.source")
    try:
        files = [Path(run.info["questions_file"])] if run.info.get("questions_file") else []
        files += [Path(given).expanduser(), ROOT / given] if given else []
        files += [BUILT_IN if known.get("model.built_in") else cached_file()] if wanted or not given else []
        file = next((file for file in files if file.is_file() and wanted in (None, sha256(file))), None)
        questions = read_questions(file, {}, []) if file else []
    except (OSError, TypeError, ValueError, RuntimeError):
        return {}  # the run itself read this file; the page does without what it asked
    return {question.question_id: list(question.turns) for question in questions}


def payloads(collection: Collection) -> list[dict[str, Any]]:
    """Per group what the page's question table shows, together within the budget."""
    for limit in LIMITS:
        found = [group_payload(group, limit) for group in collection.groups]
        if sum(len(json.dumps(one, ensure_ascii=False).encode()) for one in found) <= BUDGET_BYTES:
            break
    return found


def group_payload(group: Group, limit: int | None) -> dict[str, Any]:
    """limit: questions of each subtask whose answers are included; None includes all.

    Returns methods: [label]; questions: [[id, subtask, [turn]]]; texts: [[text, packed token lengths]];
    rows: by method [[question, speedup, tokens/s, CR, tokens, verdict, [[text, packed steps]] or 0]].
    """
    texts = Texts()
    questions: list[list[Any]] = []
    asked: dict[Key, list[list[str]]] = {}
    known = _places([entry.run for entry in group.entries], asked)
    by_subtask: dict[str, list[Place]] = {}
    for place in dict.fromkeys(place for found in known for place in found.values()):
        by_subtask.setdefault(place[0], []).append(place)
    numbers: dict[Place, int] = {}
    shown: set[Place] = set()
    for subtask, listed in by_subtask.items():
        for number, place in enumerate(listed):
            included = limit is None or number < limit
            shown |= {place} if included else set()
            numbers[place] = len(questions)
            files = asked[subtask, place[1]]
            questions.append([place[1], subtask, files[place[2]] if included and place[2] < len(files) else []])
    of_runs = zip(group.entries, known, strict=True)
    rows = [_method_rows(entry.run, places, numbers, shown, texts) for entry, places in of_runs]
    return {
        "methods": [entry.label for entry in group.entries],
        "questions": questions,
        "titles": {subtask: title(subtask) for subtask in by_subtask},
        "texts": texts.items,
        "rows": rows,
        "shown": len(shown),
    }


def _places(runs: Sequence[Run], asked: dict[Key, list[list[str]]]) -> list[dict[Key, Place]]:
    """The questions of each run, in order; `asked` gets the texts of their question files.

    Where a run's file is gone, what it asked is known by the prompt's hash: another run's text of the same hash, or a
    place without a text. Without a hash, as in imports, it is taken for the first.
    """
    found, of_hash = list[dict[Key, int]](), dict[tuple[Key, str], int]()
    hashes = [_prompts_by_key(run) for run in runs]
    for run, prompts_of in zip(runs, hashes, strict=True):
        known = prompts(run)
        found.append({})
        for key, prompt in prompts_of.items():
            turns, texts = known.get(key[1]), asked.setdefault(key, [])
            if turns:
                texts += [] if turns in texts else [turns]
                found[-1][key] = texts.index(turns)
                if prompt:
                    of_hash.setdefault((key, prompt), texts.index(turns))
    free = {key: len(texts) for key, texts in asked.items()}
    for here, prompts_of in zip(found, hashes, strict=True):
        for key, prompt in prompts_of.items():
            if prompt and key not in here and (key, prompt) not in of_hash:
                of_hash[key, prompt] = free[key]
                free[key] += 1
    return [
        {key: (*key, here.get(key, of_hash.get((key, prompt), 0))) for key, prompt in prompts_of.items()}
        for here, prompts_of in zip(found, hashes, strict=True)
    ]


def _prompts_by_key(run: Run) -> dict[Key, str]:
    """Hash of each question's first prompt; empty where it was not recorded."""
    first = run.answers.drop_duplicates(["subtask", "question_id"])
    columns = zip(first.subtask, first.question_id, first.prompt_sha256, strict=True)
    return {(subtask, id_): prompt if isinstance(prompt, str) else "" for subtask, id_, prompt in columns}


def _method_rows(
    run: Run, places: dict[Key, Place], numbers: dict[Place, int], shown: set[Place], texts: Texts
) -> list[list[Any]]:
    tokenizer = load_tokenizer(run)
    answers: dict[Key, list[list[Any]]] = {}
    first = run.answers[run.answers.repeat == run.answers.repeat.min()]
    for turn in first.itertuples():
        if places[key := (turn.subtask, turn.question_id)] in shown:
            place = texts.place(turn.text, turn.token_ids, tokenizer)
            answers.setdefault(key, []).append([place, "" if turn.lengths is None else _packed(turn.lengths)])
    rows = []
    for row in question_table(run).itertuples():
        key = row.subtask, row.Index
        figures = [_rounded(row.speedup), _rounded(row.tokens_per_s), _rounded(row.cr), int(row.tokens)]
        rows.append([numbers[places[key]], *figures, row.verdict, answers.get(key, 0)])
    return rows


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def first_divergences(run: Run, count: int = 5, context: int = 60, after: int = 90) -> list[dict[str, Any]]:
    """The first `count` turns that differ from the baseline, mismatches before near ties, each question once.

    question, subtask, turn, verdict, position and margin (None: not known); shared: the end of what both say, ours and
    theirs: how each goes on.
    """
    different = run.answers[run.answers.verdict.isin(["mismatch", "near_tie"])]
    different = different.sort_values("verdict", kind="stable").drop_duplicates(["question_id", "turn"]).head(count)
    if run.baseline is None or not len(different):
        return []
    baseline = run.baseline.set_index(["question_id", "repeat", "turn"]).text
    found = []
    for row in different.itertuples():
        theirs = baseline.get((row.question_id, row.repeat, row.turn), "")
        split = shared(row.text, theirs)
        place = {"question": row.question_id, "subtask": row.subtask, "turn": row.turn, "verdict": row.verdict}
        position = int(row.position) if np.isfinite(row.position) else None
        texts = {"shared": row.text[max(0, split - context) : split], "ours": row.text[split : split + after]}
        where = {"position": position, "margin": row.margin if np.isfinite(row.margin) else None}
        found.append({**place, **where, **texts, "theirs": theirs[split : split + after]})
    return found
