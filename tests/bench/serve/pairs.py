"""Two servers that answer as engines do, and bench.serve against them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.serve.__main__ import main
from tests.bench.serve.engine import Engine
from tests.bench.small_run import write_questions
from tests.bench.train.chat_model import SPECIAL, WORDS, write_chat_model

QUESTIONS = [
    {"question_id": number, "category": "qa" if number % 2 else "writing", "turns": ["w1 w2", "w3"][: 1 + number % 2]}
    for number in range(1, 7)
]


def write_model(folder: Path) -> None:
    """A model whose tokenizer makes the prompts, and questions."""
    write_chat_model(folder / "model", vocab_size=len(SPECIAL) + len(WORDS))
    write_questions(folder / "question.jsonl", QUESTIONS)


def arguments(model: Path, folder: Path, ours: str, theirs: str, **more: Any) -> list[str]:
    values = {
        "model": "custom",
        "model.path": model / "model",
        "data.path": model / "question.jsonl",
        "results_dir": folder,
        "server.url": ours,
        "server.baseline_url": theirs,
        "concurrency": "[1,2]",
        "max_new_tokens": 20,
        "server.timeout_s": 5,
    }
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def serve(model: Path, folder: Path, ours: Engine, theirs: Engine, **more: Any) -> int:
    with ExitStack() as stack:
        for engine in (ours, theirs):
            stack.enter_context(engine.running())
        return main(arguments(model, folder, ours.url, theirs.url, **more))


def folder_of(results: Path) -> Path:
    (found,) = (file.parent for file in results.glob("serve/*/*/*/run.json"))
    return found


def pair(dialect: str = "vllm", **ours: Any) -> tuple[Engine, Engine]:
    return Engine(dialect, speculative=True, **ours), Engine(dialect)
