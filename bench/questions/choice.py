"""Which questions are asked: those of some subtasks, a number of each, certain ids, a shard."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bench.questions.formats import Question, read_questions
from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.settings import Asking


def chosen(settings: Asking, file: Path, notes: list[str]) -> list[Question]:
    """The questions of a file that are asked. Raises UserError as reading and selecting do."""
    return select(
        read_questions(file, settings.questions.subtasks, notes),
        subtasks=[settings.task] if isinstance(settings.task, str) else settings.task,
        limit=settings.limit,
        question_ids=settings.ids,
        shard=settings.shard,
    )


def select(
    questions: Sequence[Question],
    *,
    subtasks: Collection[str] = ("all",),
    limit: int | None = None,
    question_ids: Collection[int | str] | None = None,
    shard: str = "0/1",
) -> list[Question]:
    """The questions of some subtasks ("all": of each): the first `limit` of each, certain ids only, of those part i.

    Raises UserError for values out of range, a subtask or an id that is not there, and when nothing is left.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null for all")
    known = ("all", *{question.subtask for question in questions})
    for name in subtasks:
        if name not in known:
            raise UserError(f"task={name}: unknown; {nearest(name, known)}")
    chosen = [question for question in questions if "all" in subtasks or question.subtask in subtasks]
    if question_ids is not None:
        wanted = {str(question_id) for question_id in question_ids}  # text may look like a number
        unknown = sorted(wanted - {str(question.question_id) for question in chosen})
        if unknown:
            raise UserError(f"question_ids: {unknown[0]} is not among the {len(chosen)} questions of this task")
        chosen = [question for question in chosen if str(question.question_id) in wanted]
    if limit is not None:
        place = defaultdict[str, Iterator[int]](count)  # of the next question in its subtask
        chosen = [question for question in chosen if next(place[question.subtask]) < limit]
    part, parts = _shard(shard)
    chosen = chosen[part::parts]
    if not chosen:
        raise UserError(f"task={'+'.join(sorted(subtasks))}: no question is left to ask (shard={shard}, limit={limit})")
    return chosen


def _shard(shard: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f"shard={shard}: wanted part/parts counting from 0, such as 0/1 (all) or 2/4")
    return int(numbers[1]), int(numbers[2])
