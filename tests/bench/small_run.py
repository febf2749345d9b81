"""A tiny chat model, its adapter and a question file: all that a run needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.run import main
from tests.bench.train.chat_model import SPECIAL, WORDS, write_chat_model
from tests.tiny import adapter_checkpoint

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["w1 w2 w3", "w4 w5"]},
    {"question_id": 82, "category": "math", "turns": ["w9 w8", "w7"]},
    {"question_id": 161, "category": "translation", "turns": ["w11 w12 w13 w14"]},
    {"question_id": 241, "category": "qa", "turns": ["w21"]},
    {"question_id": 242, "category": "qa", "turns": ["w22 w23"]},
]


@dataclass(frozen=True)
class SmallRun:
    """Folder with model, adapter and questions."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> SmallRun:
        write_chat_model(folder / "model", vocab_size=len(SPECIAL) + len(WORDS))
        adapter_checkpoint(folder / "adapter", hidden=32)
        write_questions(folder / "question.jsonl", QUESTIONS)
        return cls(folder)

    def overrides(self, **changes: Any) -> list[str]:
        """A short Kangaroo run on the tiny model; `changes` use __ for a dot."""
        values = {
            "method": "kangaroo",
            "model": "custom",
            "model.path": self.folder / "model",
            "model.exit_layer": 1,
            "method.checkpoint": self.folder / "adapter",
            "data.path": self.folder / "question.jsonl",
            "results_dir": self.folder / "results",
            "max_new_tokens": 12,
            "repeats": 2,
            "warmup_turns": 1,
            "threads": 1,
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"{key}={value}" for key, value in values.items() if value is not None]

    def folders(self) -> list[Path]:
        """The run directories made so far."""
        return sorted(file.parent for file in (self.folder / "results" / "runs").glob("*/*/*/run.json"))


def write_questions(path: Path, questions: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], overrides: list[str]) -> str:
    """The one line a run is refused with."""
    capsys.readouterr()
    assert main(overrides) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    return error
