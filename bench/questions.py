"""Question files in Spec-Bench's format: read, check, select; downloaded once when none is given."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest

SUBTASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
BUILT_IN = Path(__file__).parent / "assets" / "joey" / "question.jsonl"
SPEC_BENCH_URL = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
SPEC_BENCH_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"


@dataclass(frozen=True)
class Question:
    """One question of one or more turns."""

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def subtask(self) -> str:
        """Spec-Bench's subtask of this question."""
        return subtask_of(self.category)


def subtask_of(category: str) -> str:
    """Spec-Bench's eight MT-bench categories are one subtask; every other category is its own."""
    return "mt_bench" if category in MT_BENCH else category


def read_questions(path: Path) -> list[Question]:
    """All questions of a file. Raises UserError naming the file and the line of the first fault."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.path={path}: not readable ({error.__class__.__name__}); wanted: question.jsonl"
        ) from error
    questions = [_question(f"{path} line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UserError(f"data.path={path}: holds no question")
    repeated = [question_id for question_id, count in Counter(q.question_id for q in questions).items() if count > 1]
    if repeated:
        raise UserError(f"data.path={path}: question_id {repeated[0]} stands there more than once")
    return questions


def _question(where: str, line: str) -> Question:
    try:
        raw: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"data.path={where}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise UserError(f"data.path={where}: a JSON object is wanted")
    missing = [key for key in ("question_id", "category", "turns") if key not in raw]
    if missing:
        raise UserError(f"data.path={where}: the key {missing[0]} is missing; wanted: question_id, category, turns")
    turns, category = raw["turns"], str(raw["category"])
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise UserError(f"data.path={where}: turns must be a list of strings, not empty")
    if category not in (*MT_BENCH, *SUBTASKS[1:]):
        raise UserError(f"data.path={where}: category={category}; {nearest(category, (*MT_BENCH, *SUBTASKS[1:]))}")
    if not isinstance(raw["question_id"], int):
        raise UserError(f"data.path={where}: question_id={raw['question_id']!r} must be an integer")
    return Question(question_id=raw["question_id"], category=category, turns=tuple(turns))


def select(
    questions: Sequence[Question],
    *,
    subtasks: Collection[str],
    limit: int | None,
    question_ids: Collection[int] | None,
    shard: str,
) -> list[Question]:
    """The questions of some subtasks: the first `limit` of each, only certain ids, and of those part i of n.

    Raises UserError for values out of range, an id that is not there, and when nothing is left.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null for all")
    chosen = [question for question in questions if question.subtask in subtasks]
    if question_ids is not None:
        unknown = sorted(set(question_ids) - {question.question_id for question in chosen})
        if unknown:
            raise UserError(f"question_ids: {unknown[0]} is not among the {len(chosen)} questions of this task")
        chosen = [question for question in chosen if question.question_id in question_ids]
    if limit is not None:
        seen: Counter[str] = Counter()
        kept = []
        for question in chosen:
            seen[question.subtask] += 1
            if seen[question.subtask] <= limit:
                kept.append(question)
        chosen = kept
    part, parts = _shard(shard)
    chosen = chosen[part::parts]
    if not chosen:
        raise UserError(f"task={'+'.join(sorted(subtasks))}: no question is left to ask (shard={shard}, limit={limit})")
    return chosen


def _shard(shard: str) -> tuple[int, int]:
    part, slash, parts = str(shard).partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise UserError(f"shard={shard}: wanted part/parts counting from 0, such as 0/1 (all) or 2/4")
    return int(part), int(parts)


def find_questions(path: str | None, *, built_in: bool) -> Path:
    """The question file to use: the one given, joey's own for joey, else Spec-Bench's, downloaded once and checked."""
    if path is not None:
        return Path(path).expanduser()
    return BUILT_IN if built_in else download()


def cached_file(cache: Path | None = None) -> Path:
    """Where Spec-Bench's question file lies once it was downloaded; it need not be there."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "speculative-bench"
    return (cache or default) / "question.jsonl"


def download(url: str = SPEC_BENCH_URL, sha256: str = SPEC_BENCH_SHA256, cache: Path | None = None) -> Path:
    """Spec-Bench's question file in the cache. Raises UserError when it cannot be had or its hash is another."""
    file = cached_file(cache)
    if file.is_file() and _sha256(file.read_bytes()) == sha256:
        return file
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"data.path: not given, and {url} cannot be reached ({reason}); give data.path=/folder/question.jsonl"
        ) from error
    if _sha256(content) != sha256:
        raise UserError(f"data.path: {url} has sha256 {_sha256(content)}, wanted {sha256}; give data.path=FILE")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(file)
    return file


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
