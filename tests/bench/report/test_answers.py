"""What the page shows of questions and answers: which of several runs' are one."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report.answers import payloads
from bench.report.collect import collect
from bench.report.page import write_page
from tests.bench.report.simulate import Plan, changed, write_run


def test_questions_of_two_files_are_told_apart_where_their_ids_are_not(tmp_path: Path) -> None:
    write_run(tmp_path, Plan(per_category=2, repeats=1, categories=("qa",)))
    mine = Plan(per_category=3, repeats=1, categories=("mine",), config={"data": {"path": "mine.jsonl"}})
    write_run(tmp_path, mine)  # ids 1 to 3, of which 1 and 2 are taken
    (payload,) = payloads(collect(tmp_path))
    found = sorted((subtask, question) for question, subtask, _ in payload["questions"])
    assert found == [("mine", 1), ("mine", 2), ("mine", 3), ("qa", 1), ("qa", 2)]
    assert sorted(row[0] for rows in payload["rows"] for row in rows) == [0, 1, 2, 3, 4]
    assert "2 runs, 5 questions" in " ".join(write_page(collect(tmp_path), tmp_path).read_text().split())


def test_two_files_texts_of_one_id_are_two_rows_and_an_unknown_one_is_the_firsts(tmp_path: Path) -> None:
    for name, asked in (("a.txt", "What?\nWho?\n"), ("b.txt", "What?\nWhy?\n"), ("gone.txt", "")):
        file = tmp_path / name
        if asked:
            file.write_text(asked)
        plan = Plan(per_category=2, repeats=1, categories=("qa",), config={"data": {"path": str(file)}})
        changed(write_run(tmp_path, plan), started=name)  # in this order
    (payload,) = payloads(collect(tmp_path))
    questions = sorted((question, *turns) for question, _, turns in payload["questions"])
    assert questions == [(1, "What?"), (2, "Who?"), (2, "Why?")]
    shared = [[payload["questions"][row[0]][2] for row in rows] for rows in payload["rows"]]
    assert shared == [[["What?"], ["Who?"]], [["What?"], ["Why?"]], [["What?"], ["Who?"]]]


def test_what_a_run_asked_whose_file_is_gone_is_known_by_its_prompts(tmp_path: Path) -> None:
    told = [
        ("a", "A?", "0"),
        ("b", "B?", "1"),
        ("gone", "", "1"),
        ("far", "", "2"),
        ("farther", "", "3"),
        ("old", "", ""),
    ]
    for name, line, prompt in told:
        file = tmp_path / f"{name}.txt"
        if line:
            file.write_text(f"{line}\n")
        once = {"per_category": 1, "repeats": 1, "categories": ("qa",), "baseline": False}
        folder = write_run(tmp_path, Plan(**once, config={"data": {"path": str(file)}}))
        changed(folder, started=name)
        record = json.loads((folder / "answers.jsonl").read_text())
        record["choices"][0]["prompt_sha256"] = [prompt * 64] if prompt else [None]
        (folder / "answers.jsonl").write_text(json.dumps(record) + "\n")
    (group,) = collect(tmp_path).groups
    (payload,) = payloads(collect(tmp_path))
    paths = [Path(entry.run.config["data"]["path"]).stem for entry in group.entries]
    asked = {path: payload["questions"][rows[0][0]][2] for path, rows in zip(paths, payload["rows"], strict=True)}
    assert asked == {"a": ["A?"], "b": ["B?"], "gone": ["B?"], "far": [], "farther": [], "old": ["A?"]}
    assert len(payload["questions"]) == 4
