"""Question files as people have them.

A record each: an object of a JSON list or JSONL file (also .gz) or a row of a .parquet, or a line of a .txt. It has
- `turns`, `prompt`, `messages` or `conversations` (ShareGPT's): text, a list of texts, or a conversation, of which only
  what the user says is asked, since the model gives its own answers. A system message at the beginning stays there;
- `question_id` or `id`: whole numbers or text; where there is none, the number of the line, or of the record from 0;
- `category`, which is its subtask too unless the set says another; where there is none, the file's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.chat import Message
from bench.texts import ROLES, SUFFIXES, read, readable, said, shown
from methods.errors import UserError, first_line

TEXTS = ("turns", "prompt", "messages", "conversations")
PLAIN = ("turns", "prompt")
WANTED = f"wanted: a file of questions ({', '.join(SUFFIXES)})"
SUMS = ("all", "overall")  # what tasks and tables call everything together
LARGEST_ID = 2**63 - 1
WITHHELD = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"  # what SPEED-Bench says in place of a question


@dataclass(frozen=True)
class Question:
    """One question of one or more turns. opening: the system message that its file gives it, if any."""

    question_id: int | str
    category: str
    subtask: str
    turns: tuple[str, ...]
    opening: tuple[Message, ...] = ()


def read_questions(path: Path, subtasks: Mapping[str, Sequence[str]] | None, notes: list[str]) -> list[Question]:
    """All questions of a file. subtasks: the categories that share one, by its name.

    Conversations in which nothing is asked are left out and noted. Raises UserError naming the file and the line of the
    first fault.
    """
    where = f"data.path={shown(path)}"
    of_category = {category: subtask for subtask, categories in (subtasks or {}).items() for category in categories}
    questions, silent = list[Question](), list[str]()
    for name, record in records(path):
        try:
            question = _question(record, int(name.split()[-1]), Path(path.name.removesuffix(".gz")).stem, of_category)
        except ValueError as error:
            raise UserError(f"{where} {name}: {error}") from error
        if question.turns:
            questions.append(question)
        else:
            silent.append(name)
    if silent:
        notes.append(f"{where}: left out, for nothing is asked in them: {len(silent)} (first: {silent[0]})")
    if not questions:
        raise UserError(f"{where}: holds no question; {WANTED}")
    if not all(isinstance(question.question_id, int) for question in questions):  # sorted and compared: of one type
        questions = [replace(question, question_id=str(question.question_id)) for question in questions]
    repeated, count = Counter(question.question_id for question in questions).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: question_id {repeated} stands there more than once")
    return questions


def records(path: Path, key: str = "data.path") -> Iterator[tuple[str, Any]]:
    """Records of a file in any of the forms, each with its name ("line 7"). key: for messages; raises UserError."""
    if path.suffix == ".parquet":
        yield from ((f"record {number}", row) for number, row in enumerate(_rows(path, key)))
    elif path.suffix == ".txt":
        with readable(path, WANTED, key), path.open(encoding="utf-8-sig") as file:
            yield from ((f"line {n}", {"prompt": line.rstrip("\n")}) for n, line in enumerate(file, 1) if line.strip())
    else:
        yield from read(path, WANTED, key)


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with readable(path, WANTED, key), ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in (*TEXTS, "question_id", "id", "category")]
            return file.read(columns).to_pylist()
    except ArrowException as error:
        raise UserError(f"{key}={shown(path)}: {first_line(error)}; {WANTED}") from error


def _question(record: Any, number: int, unnamed: str, of_category: Mapping[str, str]) -> Question:
    """number and unnamed: id and category of a record that has none. Raises ValueError."""
    opening, turns = asked(record)
    given = {key: value for key, value in record.items() if value is not None}
    question_id = _label("question_id", given.get("question_id", given.get("id", number)))
    if isinstance(question_id, int) and abs(question_id) > LARGEST_ID:
        question_id = str(question_id)
    category = str(_label("category", given.get("category", unnamed)))
    subtask = of_category.get(category, category)
    if subtask in SUMS:
        raise ValueError(f"category={category}: means all questions together; give another, or rename the file")
    return Question(question_id, category, subtask, turns, opening)


def asked(record: Any) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The system message, if any, and the turns: none where nothing is asked. Raises ValueError.

    What neither user, assistant nor system say in a conversation is passed over.
    """
    if isinstance(record, ValueError):
        raise ValueError(f"not valid JSON ({record}); plain text is read from .txt files")
    if not isinstance(record, dict):
        raise ValueError("a JSON object is wanted")
    key = next((key for key in TEXTS if record.get(key) is not None), None)
    if key is None:
        raise ValueError(f"the key turns is missing; wanted: {', '.join(TEXTS[:-1])} or {TEXTS[-1]}")
    given = [record[key]] if isinstance(record[key], str) else record[key]
    if not isinstance(given, list):
        raise ValueError(f"{key} must be a list of strings or messages")
    if not all(isinstance(turn, dict) for turn in given) or (key in PLAIN and not given):
        if not given or not all(isinstance(turn, str) and turn.strip() for turn in given):
            raise ValueError(f"{key} must be a list of strings, not empty")
        given = [{"role": "user", "content": turn} for turn in given]
    speakers = [turn.get("from", turn.get("role")) for turn in given]
    given = [turn for turn, who in zip(given, speakers, strict=True) if who in ROLES or not isinstance(who, str)]
    try:
        messages = [Message(**message) for message in said(given)]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    opening = tuple(message for message in messages[:1] if message.role == "system")
    if any(message.role == "system" for message in messages[len(opening) :]):
        raise ValueError(f"{key}: a system message must be the first")
    turns = tuple(message.content for message in messages if message.role == "user")
    if any(WITHHELD in turn for turn in turns):
        raise ValueError(f"{key}: a place holder of SPEED-Bench; its prepare_data.py writes a file of whole questions")
    return opening, turns if all(turn.strip() for turn in turns) else ()


def _label(key: str, value: Any) -> int | str:
    """An id or category, which tables show. Raises ValueError unless it is a whole number or text of one line."""
    text = value.strip() and value.isprintable() if isinstance(value, str) else type(value) is int
    if not text:
        raise ValueError(f"{key}={str(value)[:40]!a}: must be text of one line, or a whole number")
    return value
