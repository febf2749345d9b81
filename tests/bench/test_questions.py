"""Questions: the files that are read, the sets that name one, what is chosen, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.chat import Message
from bench.config import installed
from bench.places import CONF
from bench.questions.choice import select
from bench.questions.formats import Question, read_questions
from bench.questions.sets import QuestionSet, find
from bench.questions.spec_bench import MT_BENCH, SUBTASKS, subtask_of
from bench.settings import Run
from methods.errors import UserError

GOOD = {"question_id": 1, "category": "qa", "turns": ["Who?"]}
WHO = Question(1, "qa", "qa", ("Who?",))
COMMIT = "c0" * 20


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def in_set(source: Any = "x", sha256: str | None = None, revision: str | None = None) -> QuestionSet:
    return QuestionSet(name="mine", source=str(source), revision=revision, sha256=sha256, subtasks=None)


def read(path: Path) -> list[Question]:
    return read_questions(path, None, [])


def test_the_eight_mt_bench_categories_are_one_subtask() -> None:
    values = installed().compose("config", ["questions=spec_bench"]).values["questions"]
    assert values["subtasks"] == {"mt_bench": list(MT_BENCH)}
    assert {subtask_of(category) for category in MT_BENCH} == {"mt_bench"}
    assert [subtask_of(subtask) for subtask in SUBTASKS[1:]] == list(SUBTASKS[1:])


def test_blank_lines_and_other_keys_do_not_matter(tmp_path: Path) -> None:
    extra = {**GOOD, "question_id": 2, "category": "math", "turns": ["a", "b"], "reference": ["c"]}
    file = written(tmp_path / "q.jsonl", GOOD, "", extra)
    assert read_questions(file, {"sums": ["math"]}, []) == [WHO, Question(2, "math", "sums", ("a", "b"))]


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    turn = "one\u2028two\u2029three\x85four"
    file = tmp_path / "q.jsonl"
    file.write_bytes(json.dumps({**GOOD, "turns": [turn]}, ensure_ascii=False).encode() + b"\r\n")
    assert read(file) == [Question(1, "qa", "qa", (turn,))]


def test_one_object_may_take_several_lines(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(GOOD, indent=2))
    assert [question.turns for question in read(file)] == [tuple(GOOD["turns"])]
    file.write_text(json.dumps(GOOD, indent=2)[:-2])
    with pytest.raises(UserError, match=r"q\.json line 1: not valid JSON"):
        read(file)


def test_an_address_is_no_file() -> None:
    with pytest.raises(UserError, match=r"^data.path=https://a/q.jsonl: a file is wanted; questions=custom questions"):
        find(in_set("owner/name"), "https://a/q.jsonl")


def turns(*texts: str, system: str | None = None, keys: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    """A conversation in which the user speaks first."""
    said = [("system", system)] if system is not None else []
    said += [(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
    return [dict(zip(keys, pair, strict=True)) for pair in said]


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        ({"turns": ["a", "b"]}, ("a", "b")),
        ({"turns": "a"}, ("a",)),
        ({"prompt": "a"}, ("a",)),
        ({"prompt": ["a", "b"], "turns": None}, ("a", "b")),
        ({"prompt": turns("a")}, ("a",)),
        ({"messages": turns("a", "answer", "b")}, ("a", "b")),
        ({"conversations": turns("a", "answer", keys=("from", "value"))}, ("a",)),
        ({"conversations": [{"from": "bing", "value": "x"}, {"from": "human", "value": "a"}]}, ("a",)),
    ],
)
def test_each_form_of_a_record(tmp_path: Path, record: dict[str, Any], asked: tuple[str, ...]) -> None:
    for name, content in (("q.jsonl", json.dumps(record)), ("q.json", json.dumps([record], indent=1))):
        (tmp_path / name).write_text(content)
        (question,) = read(tmp_path / name)
        assert (question.turns, question.category, question.subtask) == (asked, "q", "q")
    with gzip.open(tmp_path / "q.jsonl.gz", "wt") as file:
        file.write(json.dumps(record))
    assert read(tmp_path / "q.jsonl.gz") == read(tmp_path / "q.jsonl")


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\ufeffWho?\n\n[What\n", encoding="utf-8")
    assert read(tmp_path / "mine.txt") == [Question(n, "mine", "mine", (t,)) for n, t in ((1, "Who?"), (3, "[What"))]


def test_parquet_is_read(tmp_path: Path) -> None:
    import pandas as pd

    rows = [{"id": "a", "prompt": ["x", "y"], "other": 1}, {"id": "b", "prompt": ["z"], "other": 2}]
    pd.DataFrame(rows).to_parquet(tmp_path / "q.parquet")
    assert read(tmp_path / "q.parquet") == [Question("a", "q", "q", ("x", "y")), Question("b", "q", "q", ("z",))]


def test_a_system_message_goes_first_and_silent_conversations_are_noted(tmp_path: Path) -> None:
    records = [{"messages": turns("a", system="Be brief.")}, {"messages": turns()}, {"messages": turns(" ")}]
    notes: list[str] = []
    (question,) = read_questions(written(tmp_path / "q.jsonl", *records), {}, notes)
    assert question.opening == (Message("system", "Be brief."),) and question.turns == ("a",)
    assert len(notes) == 1 and notes[0].endswith("nothing is asked in them: 2 (first: line 2)")


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([{"question_id": 7}, {"question_id": 9}], [7, 9]),
        ([{"question_id": "b"}, {"id": "a"}], ["b", "a"]),
        ([{"question_id": 7}, {"question_id": "a"}], ["7", "a"]),
        ([{}, {"question_id": None}], [1, 2]),
        ([{"question_id": 7}, {}], [7, 2]),
        ([{"id": "x"}, {}], ["x", "2"]),
        ([{"id": 2**63}, {"id": 5}], [str(2**63), "5"]),
    ],
)
def test_ids_are_numbers_or_all_text(tmp_path: Path, given: list[dict[str, Any]], ids: list[int | str]) -> None:
    questions = read(written(tmp_path / "q.jsonl", *({"prompt": "x", **one} for one in given)))
    assert [question.question_id for question in questions] == ids


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not valid JSON"),
        ("[" * 5000, "line 2: not valid JSON (nested too deep)"),
        ("[1]", "line 2: a JSON object is wanted"),
        ({"question_id": 2, "category": "qa"}, "line 2: the key turns is missing; wanted: turns, prompt, messages or"),
        ({"turns": []}, "line 2: turns must be a list of strings, not empty"),
        ({"turns": [3]}, "line 2: turns must be a list of strings, not empty"),
        ({"turns": ["x", " "]}, "line 2: turns must be a list of strings, not empty"),
        ({"turns": {"a": 1}}, "line 2: turns must be a list of strings or messages"),
        ({"turns": ["x", "\ud800"]}, "line 2: turns: turn 1 has half of a character"),
        ({"messages": turns("\udfff")}, "line 2: messages: turn 0 has half of a character"),
        ({"messages": [{"content": "x"}]}, "line 2: messages: turn 0 has no known 'from'"),
        ({"messages": [*turns("a"), *turns(system="b")]}, "line 2: messages: a system message must be the first"),
        ({"turns": ["x"], "category": "\ud800"}, "line 2: category='\\ud800': must be text of one line"),
        ({"turns": ["x"], "category": ["qa"]}, "must be text of one line, or a whole number"),
        ({"turns": ["x"], "category": "overall"}, "line 2: category=overall: means all questions together"),
        ({"turns": ["x"], "question_id": "a\nb"}, "line 2: question_id='a\\nb': must be text of one line"),
        ({"turns": ["x"], "question_id": 1.5}, "line 2: question_id='1.5': must be text of one line"),
        ({"turns": ["x"], "question_id": True}, "line 2: question_id='True': must be text of one line"),
        (GOOD, "question_id 1 stands there more than once"),
        (
            {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING X"]},
            "turns: a place holder of SPEED-Bench",
        ),
    ],
)
def test_the_faulty_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(written(tmp_path / "q.jsonl", GOOD, line))
    assert str(caught.value).startswith(f"data.path={tmp_path / 'q.jsonl'}") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "No such file or directory"),
        ("nul\0", None, "embedded null byte"),
        ("binary", b"\xff\xfe\x00", "not UTF-8 text"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8 text"),
        ("x.parquet", b"PAR1", "Parquet file size is 4 bytes"),
        ("x.gz", b"\x1f\x8b\x08", "truncated, or not a gzip file"),
        ("empty", b"", "the file is empty"),
        ("blank.txt", b" \n", "holds no question"),
        ("deep.json", b"[" * 5000, "not valid JSON (nested too deep)"),
        ("all.txt", b"Who?", "category=all: means all questions together; give another, or rename the file"),
        ("two\nlines", b"", "two\\nlines': the file is empty"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith("data.path=") and message in str(caught.value)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["fifo", "fifo.txt", "fifo.parquet", "folder", "folder.txt"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str) -> None:
    (os.mkfifo if "fifo" in name else os.mkdir)(tmp_path / name)
    with pytest.raises(UserError, match=f"^data.path={tmp_path / name}: not a file; wanted: a file of questions"):
        read(tmp_path / name)


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: Any, **settings: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    file = written(tmp_path / "q.txt", "Who?")
    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, who is refused nothing
    with pytest.raises(UserError, match=r"q\.txt: Permission denied"):
        read(file)


def chosen(**settings: Any) -> list[int | str]:
    categories = ["writing", "qa", "math", "qa", "rag", "qa"]
    questions = [Question(number, name, subtask_of(name), ("x",)) for number, name in enumerate(categories)]
    return [question.question_id for question in select(questions, **settings)]


def test_selection_by_subtask_limit_ids_and_shard() -> None:
    assert chosen() == chosen(subtasks=["rag", "all"]) == [0, 1, 2, 3, 4, 5]
    assert chosen(subtasks=("mt_bench",)) == [0, 2]
    assert chosen(limit=1) == [0, 1, 4], "the limit counts within a subtask"
    assert chosen(question_ids=[5, 1]) == chosen(question_ids=["5", "1"]) == [1, 5]
    shards = [chosen(shard=f"{part}/4") for part in range(4)]
    assert (
        sorted(number for shard in shards for number in shard) == [0, 1, 2, 3, 4, 5]
        and max(map(len, shards)) - min(map(len, shards)) <= 1
    )


@pytest.mark.parametrize("shard", ["1/1", "x", "0", "-1/2", "2/x", "3/2", "²/3", "١/3", "0/" + "9" * 5000])
def test_shards_that_are_none_are_refused(shard: str) -> None:
    with pytest.raises(UserError, match="shard="):
        chosen(shard=shard)


def test_what_is_not_there_and_empty_selections_are_refused() -> None:
    with pytest.raises(UserError, match="question_ids: 0 is not among the 3 questions"):
        chosen(subtasks=("qa",), question_ids=[0])
    with pytest.raises(UserError, match="question_ids: a is not among the 6 questions"):
        chosen(question_ids=[1, "a"])
    with pytest.raises(UserError, match="no question is left"):
        chosen(subtasks=("qa",), limit=1, shard="1/2")
    with pytest.raises(UserError, match=r"^task=raga: unknown; did you mean rag\? valid: all, mt_bench, qa, rag$"):
        chosen(subtasks=("qa", "raga"))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "joey"),
        (["model=vicuna-7b"], "spec_bench"),
        (["questions=spec_bench", "model=joey"], "spec_bench"),
        (["model=vicuna-7b", "questions=joey"], "joey"),
    ],
)
def test_a_model_may_choose_its_questions_and_the_command_line_has_the_last_word(overrides: Any, name: str) -> None:
    run = Run.of(installed().compose("config", overrides))
    assert run.questions.name == name and run.record()["questions"]["name"] == name
    assert find(run.questions, None).is_file() if name == "joey" else run.questions.sha256


def test_every_set_says_its_own_name() -> None:
    for file in (CONF / "questions").glob("[!_]*.yaml"):
        overrides = [f"questions={file.stem}", "questions.source=x"]
        assert installed().compose("config", overrides).values["questions"]["name"] == file.stem
