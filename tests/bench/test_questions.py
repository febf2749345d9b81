"""Question files: what is read, what is chosen, what is refused, and the one download."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bench.questions import MT_BENCH, SUBTASKS, Question, download, find_questions, read_questions, select
from methods.errors import UserError

GOOD = {"question_id": 1, "category": "qa", "turns": ["Who?"]}


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_the_eight_mt_bench_categories_are_one_subtask() -> None:
    assert {Question(1, category, ("x",)).subtask for category in MT_BENCH} == {"mt_bench"}
    assert [Question(1, subtask, ("x",)).subtask for subtask in SUBTASKS[1:]] == list(SUBTASKS[1:])


def test_blank_lines_and_other_keys_do_not_matter(tmp_path: Path) -> None:
    extra = {**GOOD, "question_id": 2, "turns": ["a", "b"], "reference": ["c"]}
    file = written(tmp_path / "q.jsonl", GOOD, "", extra)
    assert read_questions(file) == [Question(1, "qa", ("Who?",)), Question(2, "qa", ("a", "b"))]


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    turn = "one\u2028two\u2029three\x85four"
    file = tmp_path / "q.jsonl"
    file.write_bytes(json.dumps({**GOOD, "turns": [turn]}, ensure_ascii=False).encode() + b"\r\n")
    assert read_questions(file) == [Question(1, "qa", (turn,))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not valid JSON"),
        ("[1]", "line 2: a JSON object is wanted"),
        ({"question_id": 2, "category": "qa"}, "line 2: the key turns is missing"),
        ({**GOOD, "question_id": 2, "turns": []}, "line 2: turns must be a list of strings"),
        ({**GOOD, "question_id": 2, "turns": [3]}, "line 2: turns must be a list of strings"),
        ({**GOOD, "question_id": 2, "category": "math_reasonin"}, "line 2: category=math_reasonin"),
        ({**GOOD, "question_id": "x"}, "line 2: question_id='x' must be an integer"),
        (GOOD, "question_id 1 stands there more than once"),
    ],
)
def test_the_faulty_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_questions(written(tmp_path / "q.jsonl", GOOD, line))


def test_missing_binary_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, message in (("none", "not readable"), ("binary", "not readable"), ("empty", "holds no question")):
        if path == "empty":
            written(tmp_path / path)
        with pytest.raises(UserError, match=message):
            read_questions(tmp_path / path)


def chosen(**changes: Any) -> list[int]:
    categories = ["writing", "qa", "math", "qa", "rag", "qa"]
    questions = [Question(number, category, ("x",)) for number, category in enumerate(categories)]
    settings = {"subtasks": SUBTASKS, "limit": None, "question_ids": None, "shard": "0/1"} | changes
    return [question.question_id for question in select(questions, **settings)]


def test_selection_by_subtask_limit_ids_and_shard() -> None:
    assert chosen() == [0, 1, 2, 3, 4, 5]
    assert chosen(subtasks=("mt_bench",)) == [0, 2]
    assert chosen(limit=1) == [0, 1, 4], "the limit counts within a subtask"
    assert chosen(question_ids=[5, 1]) == [1, 5]
    shards = [chosen(shard=f"{part}/4") for part in range(4)]
    assert (
        sorted(number for shard in shards for number in shard) == [0, 1, 2, 3, 4, 5]
        and max(map(len, shards)) - min(map(len, shards)) <= 1
    )


@pytest.mark.parametrize("shard", ["1/1", "x", "0", "-1/2", "2/x", "3/2"])
def test_shards_that_are_none_are_refused(shard: str) -> None:
    with pytest.raises(UserError, match="shard="):
        chosen(shard=shard)


def test_ids_of_another_task_and_empty_selections_are_refused() -> None:
    with pytest.raises(UserError, match="question_ids: 0 is not among the 3 questions"):
        chosen(subtasks=("qa",), question_ids=[0])
    with pytest.raises(UserError, match="no question is left"):
        chosen(subtasks=("qa",), limit=1, shard="1/2")


def test_downloads_are_checked_cached_and_never_trusted(tmp_path: Path) -> None:
    source, cache = written(tmp_path / "source.jsonl", GOOD), tmp_path / "cache"
    right = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"sha256 .* wanted 0000"):
        download(source.as_uri(), "0000", cache)
    assert not (cache / "question.jsonl").exists()
    file = download(source.as_uri(), right, cache)
    source.unlink()
    assert read_questions(download("file:///gone", right, cache)) == read_questions(file)
    file.write_text("changed")
    with pytest.raises(UserError, match=r"cannot be reached .*give data.path="):
        download("file:///gone", right, cache)


def test_the_file_given_wins_and_joey_has_its_own() -> None:
    assert find_questions("some/file", built_in=True) == Path("some/file")
    assert find_questions(None, built_in=True).name == "question.jsonl"
