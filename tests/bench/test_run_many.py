"""Several runs: lists of methods, sweeps and what is left out of them, shards, and a run that begins anew."""

from __future__ import annotations

import json
from pathlib import Path

from bench.config import installed
from bench.run import all_methods, expand_methods, main
from tests.bench.small_run import QUESTIONS, SmallRun, lines


def test_method_lists_become_one_job_each() -> None:
    assert expand_methods(installed(), ["limit=2", "method=kangaroo,vanilla"]) == [
        ["limit=2", "method=kangaroo"],
        ["limit=2", "method=vanilla"],
    ]
    everything = [job[0] for job in expand_methods(installed(), ["method=all"])]
    names = "eagle eagle2 eagle3 hydra kangaroo kangaroo_tree layerskip lookahead medusa pld recycling rest sam sps"
    assert everything == [f"method={name}" for name in names.split()]
    assert installed().compose("config", []).choices["method"] == "kangaroo"


def test_one_methods_mistake_keeps_no_other_from_running(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(
        results_dir=tmp_path, repeats=1, limit=1, method="medusa,vanilla", method__checkpoint=None
    )
    assert main(overrides) == 1
    told = capsys.readouterr().err.splitlines()
    lacks = "method.checkpoint: none is configured for model=custom; wanted: Medusa heads, by folder or hub id"
    assert told[0].startswith(f"medusa is left out: {lacks}; bench.train makes one")
    assert told[-1].startswith(f"not measured: medusa: {lacks}")
    assert [file.parent.parent.name for file in tmp_path.glob("runs/*/*/*/metrics.json")] == ["vanilla"]


def test_a_sweep_runs_every_point_and_names_what_is_left_out(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(results_dir=tmp_path, repeats=1, limit=1)
    assert main(["-m", *overrides, "method.eta=0.1,0.9"]) == 0
    etas = [json.loads(f.read_text())["config"]["method"]["eta"] for f in tmp_path.glob("runs/*/*/*/run.json")]
    assert sorted(etas) == [0.1, 0.9]
    assert main(["-m", *overrides, "method.eta=0.1,7"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("not measured: method.eta=7: method.eta=7: must be")


def test_a_sweep_over_all_methods_may_follow_other_overrides(monkeypatch, tmp_path: Path) -> None:
    from bench.session import Outcome

    asked = []
    monkeypatch.setattr(
        "bench.session.run", lambda settings, command: asked.append(settings.method_name) or Outcome(0, tmp_path)
    )
    assert main(["limit=1", "-m", "method=all,vanilla", f"results_dir={tmp_path}"]) == 0
    assert asked == [*all_methods(installed()), "vanilla"]


def test_resume_false_and_another_machine_start_beside(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(results_dir=tmp_path, repeats=1, limit=1)
    assert main(overrides) == 0
    (folder,) = (file.parent for file in tmp_path.glob("runs/*/*/*/run.json"))
    assert main([*overrides, "resume=false"]) == 0
    assert "is left as it is" in capsys.readouterr().err
    second = folder.with_name(folder.name + "-2")
    info = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**info, "cpu": "another"}))
    (folder / "run.json").write_text(json.dumps({**info, "packages": {"torch": "0.1"}}))
    assert main(overrides) == 0
    assert 'cpu was "another"' in capsys.readouterr().err
    assert folder.with_name(folder.name + "-3").is_dir()


def test_shards_of_one_question_file_merge(small: SmallRun, tmp_path: Path) -> None:
    from bench.records.frame import merge, read_run

    for part in ("0/2", "1/2"):
        assert main(small.overrides(results_dir=tmp_path, shard=part, repeats=1)) == 0
    merged = merge([read_run(file.parent) for file in tmp_path.glob("runs/*/*/*/run.json")])
    assert set(merged.answers.question_id) == {question["question_id"] for question in QUESTIONS}


def test_shards_split_the_questions(small: SmallRun, tmp_path: Path) -> None:
    for part in ("0/2", "1/2"):
        assert main(small.overrides(results_dir=tmp_path, shard=part, repeats=1)) == 0
    asked = [record["question_id"] for file in tmp_path.glob("runs/*/*/*/answers.jsonl") for record in lines(file)]
    assert sorted(asked) == [question["question_id"] for question in QUESTIONS]
