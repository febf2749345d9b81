"""Question sets (conf/questions): which file is asked, and what its subtasks are called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.sources import Source
from methods.errors import UserError

REMEDY = "give data.path=/folder/question.jsonl"


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """conf/questions/<name>.yaml.

    source, revision, sha256: where the file is to be had (bench.sources). subtasks: the categories that share one, by
    its name; a category that is not listed is its own. Raises UserError for subtasks of another form.
    """

    name: str
    source: str
    revision: str | None
    sha256: str | None
    subtasks: dict[str, list[str]] | None

    def __post_init__(self) -> None:
        for subtask, categories in (self.subtasks or {}).items():
            if not isinstance(categories, list) or not all(isinstance(category, str) for category in categories):
                raise UserError(f"questions.subtasks.{subtask}={categories}: must be a list of categories")


def find(questions: QuestionSet, path: str | None) -> Path:
    """The file to read: `path` (data.path) if given, else the set's own. Raises UserError as `Source.fetch` does."""
    if path is not None and "://" in path:
        raise UserError(f"data.path={path}: a file is wanted; questions=custom questions.source={path} fetches it")
    if path is not None:
        return Path(os.path.expanduser(path))
    return Source(questions.source, questions.revision, questions.sha256, "questions", remedy=REMEDY).fetch()
