"""Run directories: what is recorded survives, and nothing is mixed."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fidelity import Fidelity
from bench.measure import Timed
from bench.questions.formats import Question
from bench.records.directory import RunDirectory
from bench.records.frame import read_run
from bench.records.identity import (
    HASHES,
    change,
    config_hash,
    differences,
    environment,
    file_keys,
    incidental,
    measured,
)
from bench.records.lines import Place, Turn, choice_of, measured_row, prompt_hash, read_rows
from methods.decoder import Generation, Step
from methods.errors import UserError

CONFIG: dict[str, Any] = {"model": {"name": "m"}, "method": {"gamma": 6}, "method_name": "kangaroo"}
MACHINE: dict[str, Any] = {
    "cpu": "same",
    "cores": 2,
    "gpu": "same",
    "driver": "same",
    "cuda": "same",
    "threads": 2,
    "commit": "same",
    "memory_bytes": 8 << 30,
    "dtype": "float32",
    "python": "3.11.2",
    "packages": {"torch": "2.0"},
    **{name: "same" if name == "questions_sha256" else {"a file": "same"} for name in HASHES},
}


def opened(root: Path, *, resume: bool = True, **machine: Any) -> RunDirectory:
    directory = RunDirectory.open(root, CONFIG, MACHINE | machine, resume=resume)
    directory.write_info(MACHINE | machine)
    return directory


def turn(emitted: tuple[int, ...] = (3, 1)) -> Turn:
    tokens = tuple(range(sum(emitted) + 1))
    generation = Generation(tokens, tuple(Step(drafted=6, emitted=n) for n in emitted), "eos")
    return Turn((1, 2), "text", Timed(generation, 1.0, 0.1, 0.2, 0.3), Fidelity("equal"))


def place(question_id: int, repeat: int = 0) -> Place:
    return Place(Question(question_id, "writing", "mt_bench", ("x",)), repeat)


def write(directory: RunDirectory, *question_ids: int) -> None:
    for question_id in question_ids:
        directory.write(place(question_id), {"answer_id": "a"}, [turn()], [turn((1, 1, 1, 1))])


def test_what_is_written_is_done_when_opened_again(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    write(directory, 1, 2)
    directory.write_failure(place(3), {}, 0, "skipped", "too long")
    directory.close()
    again = opened(tmp_path)
    assert again.folder == directory.folder and again.done == {(1, 0), (2, 0), (3, 0)} and again.notice is None
    again.close()


def test_an_empty_line_is_no_record_and_no_mistake(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as directory:
        write(directory, 1)
        write(directory, 2)
    for name in ("answers.jsonl", "baseline.jsonl"):
        file = directory.folder / name
        file.write_text(file.read_text().replace("\n", "\n\n", 1))
    with closing(opened(tmp_path)) as again:
        assert again.done == directory.done
    assert len(read_run(directory.folder).answers) == 2


@pytest.mark.parametrize("torn", ["answers.jsonl", "baseline.jsonl", "failures.jsonl"])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path: Path, torn: str) -> None:
    directory = opened(tmp_path)
    write(directory, 1)
    directory.close()
    with (directory.folder / torn).open("a") as file:
        file.write('{"question_id": 2, "rep')
    again = opened(tmp_path)
    assert again.done == {(1, 0)}
    write(again, 2)
    again.close()
    assert [json.loads(line)["question_id"] for line in again.answers.read_text().splitlines()] == [1, 2]
    assert [json.loads(line)["question_id"] for line in again.baseline.read_text().splitlines()] == [1, 2]


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    directory = opened(tmp_path)
    write(directory, 1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (directory.baseline.stat().st_size + 20, hard))
        with pytest.raises(UserError, match=r"baseline\.jsonl cannot be written \(File too large\); what was recorded"):
            write(directory, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        directory.close()
    again = opened(tmp_path)
    assert again.done == {(1, 0)}
    write(again, 2)
    again.close()
    assert [json.loads(line)["question_id"] for line in again.baseline.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("deleted", ["run", "results"])
def test_a_folder_deleted_during_the_run_is_one_line(tmp_path: Path, deleted: str) -> None:
    directory = opened(tmp_path / "results")
    write(directory, 1)
    shutil.rmtree(directory.folder if deleted == "run" else tmp_path / "results")
    with pytest.raises(UserError, match=r"baseline\.jsonl cannot be written .* its folder was deleted"):
        write(directory, 2)
    directory.close()


def test_a_run_whose_answers_were_deleted_is_measured_anew_and_read(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    write(directory, 1, 2, 3)
    directory.close()
    directory.answers.unlink()
    again = opened(tmp_path)
    assert again.folder == directory.folder and again.done == set() and again.baseline.read_bytes() == b""
    write(again, 1, 2, 3)
    again.close()
    run = read_run(again.folder)
    assert list(run.answers.question_id) == list(run.baseline.question_id) == [1, 2, 3]


@pytest.mark.parametrize("name", [".lock", "answers.jsonl", "baseline.jsonl", "failures.jsonl"])
def test_nothing_is_appended_through_a_link(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "runs" / "m" / "kangaroo" / config_hash(CONFIG)
    folder.mkdir(parents=True)
    (folder / name).symlink_to(victim)
    with pytest.raises(UserError, match=rf"{name} cannot be written \(Too many levels of symbolic links\)"):
        directory = RunDirectory(folder, None)
        directory.write_failure(place(1), {}, 0, "failed", "x")
        write(directory, 2)
    assert victim.read_text() == "precious"


def test_a_link_in_place_of_a_whole_file_goes(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = RunDirectory.open(tmp_path, CONFIG, MACHINE, resume=True)
    for name in ("metrics.json", ".metrics.json.partial"):
        (directory.folder / name).symlink_to(victim)
    directory.write_metrics({"a": 1})
    directory.close()
    file = directory.folder / "metrics.json"
    assert victim.read_text() == "precious" and not file.is_symlink() and json.loads(file.read_text()) == {"a": 1}


def test_a_baseline_line_without_its_answer_is_cut_off(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    write(directory, 1, 2)
    directory.close()
    answers = directory.answers.read_text().splitlines(keepends=True)
    directory.answers.write_text(answers[0])
    again = opened(tmp_path)
    again.close()
    assert again.done == {(1, 0)} and len(again.baseline.read_text().splitlines()) == 1


@pytest.mark.parametrize("broken", ["nonsense", "[" * 5000, "[1]", '{"question_id": [1], "repeat": 0}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, broken: str) -> None:
    directory = opened(tmp_path)
    write(directory, 1)
    directory.close()
    with directory.answers.open("a") as file:
        file.write(broken + "\n")
    with pytest.raises(UserError, match=r"answers.jsonl line 2: not a record"):
        opened(tmp_path)


OTHERS: dict[str, Any] = {"cores": 3, "threads": 3, "memory_bytes": 9 << 30, "python": "3.12.2"}
OTHERS |= {"packages": {"torch": "2.1"}, "checkpoint_sha256": {"a file": "other"}, "chat_sha256": {"a file": "other"}}


@pytest.mark.parametrize("key", MACHINE)
def test_another_machine_or_version_goes_beside(tmp_path: Path, key: str) -> None:
    first = opened(tmp_path)
    write(first, 1)
    first.close()
    kept = first.answers.read_bytes()
    other = opened(tmp_path, **{key: OTHERS.get(key, "other")})
    other.close()
    assert other.folder == first.folder.with_name(first.folder.name + "-2") and other.done == set()
    assert re.search(r"not continuing \S+: \S+ was .+, is .+", other.notice or "")
    assert first.answers.read_bytes() == kept
    back = opened(tmp_path)
    back.close()
    assert back.folder == first.folder and back.done == {(1, 0)}


def test_the_newest_folder_that_matches_is_continued(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(first, 1)
    first.close()
    anew = opened(tmp_path, resume=False)
    write(anew, 2)
    anew.close()
    other = opened(tmp_path, cpu="other")
    other.close()
    again = opened(tmp_path)
    again.close()
    assert (again.folder, again.done) == (anew.folder, {(2, 0)})
    assert other.folder.name == f"{first.folder.name}-3"


def test_a_run_that_returns_to_its_first_machine_goes_on_there(tmp_path: Path) -> None:
    """Even when on the other machine it was killed before it had written anything but its lock."""
    first = opened(tmp_path)
    write(first, 1)
    first.close()
    elsewhere = RunDirectory.open(tmp_path, CONFIG, MACHINE | {"cpu": "other"}, resume=True)
    elsewhere._lock.close()  # as when the process dies
    back = opened(tmp_path)
    back.close()
    assert elsewhere.folder != first.folder == back.folder and back.done == {(1, 0)}


def test_the_later_start_is_newer_than_the_higher_number(tmp_path: Path) -> None:
    for resume, started in ((True, "2024-05-02"), (False, "2024-05-01")):
        directory = RunDirectory.open(tmp_path, CONFIG, MACHINE, resume=resume)
        directory.write_info(MACHINE | {"started": started})
        directory.close()
    again = opened(tmp_path)
    again.close()
    assert again.folder.name == config_hash(CONFIG)


def test_answers_without_run_json_are_not_continued(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(first, 1)
    first.close()
    (first.folder / "run.json").unlink()
    again = opened(tmp_path)
    again.close()
    assert again.folder.name.endswith("-2") and again.done == set()
    assert "it has answers.jsonl but no run.json" in (again.notice or "")


def test_a_folder_in_which_nothing_was_recorded_goes(tmp_path: Path) -> None:
    for _ in range(2):
        directory = RunDirectory.open(tmp_path, CONFIG, MACHINE, resume=True)
        assert directory.folder.name == config_hash(CONFIG)
        directory.close()
        assert not directory.folder.exists()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "not valid JSON"),
        ("5", "expected a JSON object, found int"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 5000, "not valid JSON"),
        ('{"model": "\\ud800"}', "not valid JSON"),
        ('{"config": {"a": ' + "[" * 60 + "]" * 60 + "}}", "nested deeper than 50 levels"),
        ('{"model": ["a"]}', "model is list, expected text"),
        ('{"method": 5}', "method is int, expected text"),
        ('{"config": "x"}', "config is str, expected an object"),
        ('{"packages": []}', "packages is list, expected an object"),
        ('{"git": [1]}', "git is list, expected an object"),
        ('{"threads": {"a": 1}}', "threads is dict, expected an integer"),
    ],
)
def test_a_broken_run_json_is_named(tmp_path: Path, broken: str, message: str) -> None:
    first = opened(tmp_path)
    first.close()
    (first.folder / "run.json").write_text(broken)
    for read in (lambda: opened(tmp_path), lambda: read_run(first.folder)):
        with pytest.raises(UserError, match=rf"run\.json: {message}"):
            read()


def test_what_is_not_measured_does_not_name_a_run() -> None:
    assert config_hash(CONFIG | {"results_dir": "a", "resume": True}) == config_hash(CONFIG | {"resume": False})
    assert config_hash(CONFIG | {"launcher": {"partition": "a"}}) == config_hash(dict(reversed(CONFIG.items())))
    assert config_hash(CONFIG | {"seed": 1}) != config_hash(CONFIG)


def test_runs_meet_that_differ_only_in_where_and_how_they_were_done() -> None:
    config = {
        "shard": "1/2", "engine": "auto", "results_dir": "a", "launcher": {"partition": "b"}, "seed": 1,
        "data": {"path": "c", "length": 9}, "model": {"path": "d", "name": "m"}, "task": {"name": "bench", "kind": "e"},
        "questions": {"name": "mt_bench", "source": "f"},
    }  # fmt: skip
    assert measured(config) == {
        "seed": 1, "data.length": 9, "model.name": "m", "task": "bench", "questions": "mt_bench"
    }  # fmt: skip
    assert incidental("questions.source") and incidental("launcher.partition") and not incidental("questions.limit")


def test_a_records_machine_is_told_of_every_age() -> None:
    """Of before there were two engines, and of before the dtype and the files stood beside the configuration."""
    old = {"config": {"model": {"dtype": "float16"}}, "memory_bytes": (8 << 30) + 4096, "python": "3.11.2"}
    found = environment(old)
    assert {name: found[name] for name in ("dtype", "engine", "memory_gib", "python", "gpu")} == {
        "dtype": "float16", "engine": "eager", "memory_gib": 8, "python": "3.11", "gpu": None
    }  # fmt: skip
    assert file_keys(old) == {"method.checkpoint", "method.datastore", "method.tokenizer"}
    assert file_keys({"files": {"method.static": {"path": "a"}}}) == {"method.static"}


def test_the_first_change_is_named_with_both_values_in_their_order() -> None:
    assert change(MACHINE, MACHINE | {"cores": 3, "cpu": "other"}) == 'cpu was "same", is "other"'
    assert change(MACHINE, MACHINE | {"servers": {"a": 1}}) == 'servers was null, is {"a": 1}'
    assert differences({"b": 1, "a": 2}, {"a": 3, "c": 4}) == [("b", 1, None), ("a", 2, 3), ("c", None, 4)]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(UserError, match="another process is writing"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_steps_that_disagree_with_the_tokens_are_never_written(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    good = turn()
    generation = Generation(good.timed.generation.tokens[:-1], good.timed.generation.steps, "eos")
    bad = Turn(good.prompt_ids, "text", Timed(generation, 1.0, 0.1, 0.2, 0.3))
    with pytest.raises(AssertionError, match="disagree"):
        directory.write(place(1), {}, [bad], None)
    assert not directory.answers.exists()
    directory.close()


def test_a_line_is_read_into_the_rows_that_it_was_written_from() -> None:
    turns = [turn(), replace(turn((1, 5, 2)), fidelity=Fidelity("near_tie", 4, 0.25)), replace(turn(()), fidelity=None)]
    question = Question("chapter/7", "my own", "a group of them", ("x", "y", "z"))
    rows = [measured_row(Place(question, 1), number, one) for number, one in enumerate(turns)]
    rows[1].doubtful = 3
    line = json.loads(json.dumps({**Place(question, 1).head, "choices": [choice_of(rows)]}))
    for written, found in zip(rows, read_rows(line), strict=True):
        for field in fields(written):
            before, after = getattr(written, field.name), getattr(found, field.name)
            assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == (after or before)


def test_doubtful_drafts_are_counted_where_there_are_some() -> None:
    rows = [measured_row(place(1), 0, turn()) for _ in range(2)]
    assert "doubtful" not in choice_of(rows)
    timed = turn().timed
    told = replace(turn(), timed=replace(timed, generation=replace(timed.generation, doubtful=2)))
    assert choice_of([rows[0], measured_row(place(1), 1, told)])["doubtful"] == [None, 2]


def test_prompts_have_one_hash() -> None:
    assert prompt_hash((1, 2)) != prompt_hash((2, 1)) and prompt_hash((258,)) != prompt_hash((2, 1))


def test_hashes_on_the_disk_are_what_they_always_were() -> None:
    """With others, older runs would not be gone on with, or be said to have been asked something else."""
    assert prompt_hash((1, 258)) == "fb8bbe2ad3ab5292f19bc5d75bbab9b5fbddc5a78ce47ab41b2d3d59bca08596"
    assert config_hash({"a": 1}) == "f9d86028c6e0"


@pytest.mark.parametrize("name", RunDirectory.lines)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_a_runs_folder_is_refused_and_not_opened(tmp_path: Path, make: Any, name: str) -> None:
    with closing(opened(tmp_path)) as directory:
        write(directory, 1)
    file = directory.folder / name
    file.unlink(missing_ok=True)
    make(file)
    with pytest.raises(UserError, match=f"{name}: not readable as records of a run .*; resume=false starts anew"):
        opened(tmp_path)
    opened(tmp_path, resume=False).close()
