"""bench.distill: what is written, that a killed process goes on to the same file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.chat import Chat, Message
from bench.config import installed
from bench.distill import work
from bench.distill.__main__ import main
from bench.distill.author import Author, Style
from bench.texts import read as read_records
from bench.train import conversations
from methods.engine.checkpoint import load_model
from methods.hf import model_of
from tests.bench.small_run import write_questions
from tests.bench.train.chat_model import SPECIAL, WORDS, write_chat_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model", vocab_size=len(SPECIAL) + len(WORDS))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{' '.join(WORDS[at : at + 1 + at % 4])}\n" for at in range(10)))
    return file


def overrides(model: Path, folder: Path, **changes: Any) -> list[str]:
    values = {
        "model": "custom",
        "model.path": model,
        "output": folder / "out.jsonl",
        "batch": 4,
        "max_new_tokens": 8,
        "prompt_tokens": 30,
        "conversations": 7,
        "threads": 1,
        **changes,
    }
    return [f"{key}={value}" for key, value in values.items()]


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_stopped_process_goes_on_to_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    assert main(overrides(model, tmp_path / "whole", temperature=temperature)) == 0
    whole = (tmp_path / "whole" / "out.jsonl").read_bytes()
    write, calls = Author.write, iter(range(100))

    def stopped(self: Author, *given: Any) -> Any:
        if next(calls) in (1, 2, 5):
            raise KeyboardInterrupt
        return write(self, *given)

    monkeypatch.setattr(Author, "write", stopped)
    statuses = [main(overrides(model, tmp_path, temperature=temperature))]
    while statuses[-1] == 130:
        with (tmp_path / "out.jsonl").open("ab") as file:
            file.write(b'{"id": 3, "conv')  # half a line, as from a process that was killed while it wrote
        statuses.append(main(overrides(model, tmp_path, temperature=temperature)))
    assert statuses[-1] == 0 and len(statuses) >= 3
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert main(overrides(model, tmp_path, temperature=temperature)) == 0  # and once it is done, nothing is added
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_drawn_conversations_are_what_training_reads(model: Path, tmp_path: Path) -> None:
    assert main(overrides(model, tmp_path)) == 0
    read = list(read_records(tmp_path / "out.jsonl"))
    assert len(read) == 7
    assert all(
        [message["role"] for message in conversations.messages(record)] == ["user", "assistant"] for _, record in read
    )
    asked = [record["conversations"][0]["value"] for _, record in read]
    assert len(set(asked)) == 7
    assert not any(special in text for text in asked for special in ("<s>", "</s>", "<bot>"))


def test_answers_are_the_targets_own_greedy_ones(model: Path, tmp_path: Path, prompts: Path) -> None:
    """Padding changes nothing: each answer is what the prompt gives alone."""
    assert main(overrides(model, tmp_path, prompts=prompts, conversations="null")) == 0
    found = records(tmp_path / "out.jsonl")
    assert sorted(record["conversations"][0]["value"] for record in found) == sorted(prompts.read_text().splitlines())
    target = load_model(model, device="cpu")
    chat = Chat(model)
    author = Author(model_of(target), chat, target.config.eos_token_ids, target.config.context)
    for record in found:
        question, answer = (turn["value"] for turn in record["conversations"])
        alone = author.write([chat.prompt_ids([Message("user", question)])], Style(8, 0), 0)[0]
        assert answer == chat.decode(alone)


def test_every_turn_of_a_conversation_is_answered(model: Path, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.jsonl", [{"question_id": 1, "category": "qa", "turns": ["w1", "w2 w3", "w4"]}])
    assert main(overrides(model, tmp_path, prompts=file, max_new_tokens=1, temperature=0)) == 0
    assert main(overrides(model, tmp_path / "long", prompts=file, max_new_tokens=100, unfinished="drop")) == 0
    (first,) = records(tmp_path / "out.jsonl")
    assert len(first["conversations"]) == 2  # an unfinished answer is the last
    for record in records(tmp_path / "long" / "out.jsonl"):
        assert [turn["value"] for turn in record["conversations"][::2]] == ["w1", "w2 w3", "w4"]


def test_unfinished_answers_are_dropped_and_counted_if_asked(
    model: Path, tmp_path: Path, prompts: Path, capsys: Any
) -> None:
    settings = {"prompts": prompts, "max_new_tokens": 2, "conversations": "null"}
    assert main(overrides(model, tmp_path, unfinished="drop", **settings)) == 0
    kept = len(records(tmp_path / "out.jsonl"))
    assert f"{kept} conversations" in (said := capsys.readouterr().out)
    assert f"{10 - kept} unfinished" in said and kept < 10


def test_what_shares_a_run_with_a_question_is_dropped_and_counted(model: Path, tmp_path: Path, capsys: Any) -> None:
    lines = [
        " ".join(WORDS[:20]),
        " ".join(["w40", *WORDS[5:18]]),
        " ".join(["w40", *WORDS[5:17]]),
        "w3 w4",
        "w3 w4 w5",
    ]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    test = write_questions(
        tmp_path / "test.jsonl",
        [{"question_id": 1, "category": "qa", "turns": [" ".join(WORDS[:30]), "w3 w4"]}],
    )
    given = overrides(model, tmp_path, prompts=tmp_path / "prompts.txt", exclude=test, conversations="null")
    assert main(given) == 0
    assert {record["conversations"][0]["value"] for record in records(tmp_path / "out.jsonl")} == {lines[2], lines[4]}
    assert "3 shared with exclude" in capsys.readouterr().out


def test_an_answer_with_a_question_in_it_is_dropped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: Author, given: Any, *rest: Any) -> list[list[int]]:
        return [[*range(len(SPECIAL), len(SPECIAL) + 15), 2] for _ in given]

    monkeypatch.setattr(Author, "write", write)
    test = write_questions(
        tmp_path / "test.jsonl", [{"question_id": 1, "category": "qa", "turns": [" ".join(WORDS[:30])]}]
    )
    (tmp_path / "prompts.txt").write_text("w50")
    assert main(overrides(model, tmp_path, prompts=tmp_path / "prompts.txt", exclude=test)) == 0
    assert records(tmp_path / "out.jsonl") == []


def test_records_without_a_prompt_are_left_out_and_counted(model: Path, tmp_path: Path, capsys: Any) -> None:
    human, bot = {"from": "human", "value": "w1 w2"}, {"from": "gpt", "value": "w3"}
    lines = [{"conversations": [bot]}, {"conversations": [human, bot]}, "no JSON"]
    (tmp_path / "p.jsonl").write_text("\n".join(text if isinstance(text, str) else json.dumps(text) for text in lines))
    assert main(overrides(model, tmp_path, prompts=tmp_path / "p.jsonl")) == 0
    assert [record["conversations"][0] for record in records(tmp_path / "out.jsonl")] == [human]
    assert "2 without a prompt left out (first: line 1: nothing is asked in it" in capsys.readouterr().err


def test_system_messages_of_prompts_are_left_out_and_said(model: Path, tmp_path: Path, capsys: Any) -> None:
    said = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1 w2"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    assert main(overrides(model, tmp_path, prompts=tmp_path / "p.jsonl")) == 0
    assert "system messages of 1 are left out (first: line 1); model.system_prompt= gives all one" in (
        capsys.readouterr().err
    )


def refused(capsys: Any, given: list[str]) -> str:
    assert main(given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return str(said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": "/no/such/questions.jsonl"}, "exclude=/no/such/questions.jsonl: No such file"),
        ({"prompts": "/no/such/prompts.jsonl"}, "prompts=/no/such/prompts.jsonl: No such file"),
        ({"conversations": "null"}, "drawn prompts never end"),
        ({"prompt_temperature": 1e-9}, "prompt_temperature=1e-09: must be"),
        ({"prompt_top_k": 0}, "prompt_top_k=0: must be"),
        ({"unfinished": "cut"}, "unfinished=cut: unknown; valid: drop, keep"),
        ({"batch": 0}, "batch=0: must be"),
        ({"model.path": "/no/such/model"}, "model.path=/no/such/model: no such folder"),
    ],
)
def test_bad_input_is_one_line(model: Path, tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str) -> None:
    assert message in refused(capsys, overrides(model, tmp_path, **changes))
    assert not (tmp_path / "out.jsonl").exists()


def test_another_distillations_file_is_refused(model: Path, tmp_path: Path, capsys: Any, prompts: Path) -> None:
    given = overrides(model, tmp_path, prompts=prompts)
    assert main(given) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    message = refused(capsys, overrides(model, tmp_path, prompts=prompts, seed=1))
    assert "out.jsonl: written with seed=0, now 1; give another output" in message
    prompts.write_text("w1")
    assert "written with files.prompts=" in refused(capsys, given)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_file_that_nobody_distilled_is_refused(model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out.jsonl").write_text("dear diary")
    assert "no distillation wrote it" in refused(capsys, overrides(model, tmp_path))
    assert (tmp_path / "out.jsonl").read_text() == "dear diary"


def test_a_model_that_never_ends_is_given_up(
    model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "BARREN", 2)
    message = refused(capsys, overrides(model, tmp_path, prompt_tokens=1))
    assert "2 batches in a row gave nothing" in message and "prompts without end" in message


def test_the_command_composes() -> None:
    assert main(["--help"]) == 0
    assert installed().compose("distill", ["output=x", "model=smollm2-135m"]).values["conversations"] == 1000


@pytest.mark.parametrize(
    "change",
    [{"bytes": 5}, {"bytes": -1}, {"kept": 9}, {"kept": "x"}, {"calls": None}, {"waiting": 3}, {"more": 1}],
    ids=str,
)
def test_a_state_that_is_none_costs_no_conversation(
    model: Path, tmp_path: Path, capsys: Any, change: dict[str, Any]
) -> None:
    (tmp_path / "p.txt").write_text("w1 w2\nw3 w4")
    given = overrides(model, tmp_path, prompts=tmp_path / "p.txt")
    assert main(given) == 0
    state, written = tmp_path / "out.jsonl.state.json", (tmp_path / "out.jsonl").read_bytes()
    state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
    capsys.readouterr()
    assert "out.jsonl.state.json" in refused(capsys, given) and (tmp_path / "out.jsonl").read_bytes() == written


def test_a_shorter_context_is_the_models(model: Path, tmp_path: Path, capsys: Any) -> None:
    assert "leaves no prompt room in 9 tokens" in refused(capsys, overrides(model, tmp_path, **{"model.context": 9}))
