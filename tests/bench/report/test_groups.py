"""Which runs stand in one table, which are merged, and what they are called there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.report.collect import Collection, collect, group_runs, shape
from bench.report.command import main, write_collection
from bench.report.cost_chart import CostChart
from bench.report.tables import group_notes
from tests.bench.report.simulate import GPU, MACHINE, Plan, Truth, changed, write_run


def test_machines_are_kept_apart(tmp_path):
    plan = Plan(per_category=2, repeats=1, categories=("qa",))
    write_run(tmp_path, plan)
    write_run(tmp_path, replace(plan, machine=MACHINE | {"cpu": "Other 1"}, truth=Truth(0.9, 0.1)))
    groups = collect(tmp_path).groups
    assert [group.machine for group in groups] == ["A", "B"]
    assert {group.environment["cpu"] for group in groups} == {"Imaginary 9000", "Other 1"}
    assert all(entry.metrics["overall"]["questions"] == 2 for group in groups for entry in group.entries)


def test_shards_of_one_machine_merge_and_of_two_do_not(tmp_path):
    plan = Plan(per_category=1, repeats=1)
    write_run(tmp_path / "same", replace(plan, question_ids=tuple(range(6)), config={"shard": "0/2"}))
    second = replace(plan, question_ids=tuple(range(6, 12)), config={"shard": "1/2"})
    write_run(tmp_path / "same", second)
    (group,) = collect(tmp_path / "same").groups
    (whole,) = (entry.metrics["overall"] for entry in group.entries)
    assert whole["questions"] == 12 and whole["speedup"] > 1, "the baselines are one too"
    write_run(tmp_path / "apart", replace(plan, question_ids=tuple(range(6)), config={"shard": "0/2"}))
    write_run(tmp_path / "apart", replace(second, machine=GPU))
    apart = collect(tmp_path / "apart")
    assert len(apart.groups) == 2
    assert "not merged" in apart.warnings[0] and "NVIDIA H100" in apart.warnings[0]
    assert "1 of 2 shards" in str(group_notes(apart.groups[0]))
    write_run(tmp_path / "other", replace(plan, question_ids=tuple(range(6)), config={"shard": "0/2"}))
    write_run(tmp_path / "other", replace(second, machine=GPU, settings={"eta": 0.3}))
    assert "not merged" not in str(collect(tmp_path / "other").warnings), "of another setting they are no parts"


def test_parts_of_two_partitions_are_no_whole(tmp_path):
    plan = Plan(per_category=1, repeats=1)
    for shard, ids in (("0/2", range(6)), ("1/3", range(6, 12))):
        write_run(tmp_path, replace(plan, question_ids=tuple(ids), config={"shard": shard}))
    (group,) = collect(tmp_path).groups
    assert [entry.metrics["overall"]["questions"] for entry in group.entries] == [6, 6]
    assert "1 of 2 shards" in str(group.warnings) and "1 of 3 shards" in str(group.warnings)


def test_a_part_of_another_partition_leaves_a_whole_one_whole(tmp_path):
    plan = Plan(per_category=1, repeats=1)
    for shard, ids in (("0/2", range(6)), ("0/3", range(6)), ("1/2", range(6, 12))):
        write_run(tmp_path, replace(plan, question_ids=tuple(ids), config={"shard": shard}))
    (group,) = collect(tmp_path).groups
    assert sorted(entry.metrics["overall"]["questions"] for entry in group.entries) == [6, 12]
    assert "1 of 3 shards" in str(group.warnings) and "of 2 shards" not in str(group.warnings)


def test_parts_with_other_drafts_are_not_merged_and_that_is_said(tmp_path):
    for part in range(2):
        ids = tuple(range(6 * part, 6 * part + 6))
        draft = {"checkpoint_sha256": {"method.checkpoint/x.bin": str(part)}}
        plan = Plan(per_category=1, repeats=1, question_ids=ids, config={"shard": f"{part}/2"}, machine=MACHINE | draft)
        write_run(tmp_path, plan)
    (group,) = collect(tmp_path).groups
    assert len(group.entries) == 2
    assert "shards of kangaroo with another checkpoint_sha256 are not merged" in group.warnings


def test_one_part_of_another_commit_leaves_the_others_together(tmp_path):
    for part in range(3):
        ids, commit = tuple(range(6 * part, 6 * part + 6)), {"commit": str(part // 2)}
        plan = Plan(
            per_category=1, repeats=1, question_ids=ids, config={"shard": f"{part}/3"}, machine=MACHINE | commit
        )
        write_run(tmp_path, plan)
    (group,) = collect(tmp_path).groups
    assert sorted(entry.metrics["overall"]["questions"] for entry in group.entries) == [6, 12]
    assert "shards of kangaroo with another commit are not merged" in group.warnings


def test_parts_that_are_whole_without_each_other_are_two_runs(tmp_path):
    for part, commit in product(range(2), "ab"):
        ids = tuple(range(6 * part, 6 * part + 6))
        shard = {"config": {"shard": f"{part}/2"}, "machine": MACHINE | {"commit": commit}}
        write_run(tmp_path, Plan(per_category=1, repeats=1, question_ids=ids, **shard))
    (group,) = collect(tmp_path).groups
    assert [entry.metrics["overall"]["questions"] for entry in group.entries] == [12, 12]
    assert "are not merged" not in str(group.warnings)


def test_what_a_report_makes_no_more_goes_and_what_others_put_there_stays(tmp_path):
    plan = Plan(per_category=2, repeats=1, categories=("qa",))
    write_run(tmp_path, plan)
    gone = write_run(tmp_path, replace(plan, machine=MACHINE | {"cpu": "Other 1"}))
    out = tmp_path / "report"
    assert main([f"results_dir={tmp_path}"]) == 0
    assert any(out.glob("*_B.png"))
    (out / "mine_B.png").write_text("mine")
    shutil.rmtree(gone)
    changed_by_hand, folder, linked, *_ = sorted(out.glob("figure*_B.*"))
    changed_by_hand.write_text("mine")
    folder.unlink()
    folder.mkdir()
    content = linked.read_bytes()
    linked.unlink()
    linked.symlink_to((tmp_path / "elsewhere.png").absolute())
    linked.write_bytes(content)
    stay = sorted([changed_by_hand.name, folder.name, linked.name, "mine_B.png"])
    outside = '{"mine_B.png": 7, "..": "x", "x/../../y": "", "../elsewhere.png": "%s"}'
    digest = hashlib.sha256(content).hexdigest()
    for listed in (None, "no list", '["mine_B.png"]', '"mine_B.png"', outside % digest, "[" * 99_999):
        if listed:
            (out / ".made.json").write_text(listed)
        assert main([f"results_dir={tmp_path}"]) == 0
        assert sorted(file.name for file in out.glob("*_B.*")) == stay and (out / "index.html").is_file()
    assert changed_by_hand.read_text() == "mine" and (tmp_path / "elsewhere.png").read_bytes() == content


def test_what_cannot_be_removed_now_is_removed_another_time(tmp_path, monkeypatch):
    (tmp_path / "old.png").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    (tmp_path / ".made.json").write_text(json.dumps({"aaa.png": digest, "old.png": digest}))

    def refuse(*given, **how):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        write_collection(Collection(()), tmp_path)
    assert (tmp_path / "old.png").is_file()
    write_collection(Collection(()), tmp_path)
    assert not (tmp_path / "old.png").exists()


def test_shards_without_a_baseline_are_one_run_without_it(tmp_path):
    plan = Plan(per_category=1, repeats=1, baseline=False)
    for part in range(2):
        ids = tuple(range(6 * part, 6 * part + 6))
        write_run(tmp_path, replace(plan, question_ids=ids, config={"shard": f"{part}/2"}))
    (group,) = collect(tmp_path).groups
    (entry,) = group.entries
    assert entry.run.baseline is None and len(entry.run.folders) == 2 and entry.metrics["overall"]["speedup"] is None


def test_runs_of_one_method_are_told_apart_by_their_settings(tmp_path):
    for eta in (0.3, 0.6):
        write_run(tmp_path, Plan(per_category=1, repeats=1, settings={"eta": eta, "gamma": 6}))
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == ["kangaroo (eta=0.3)", "kangaroo (eta=0.6)"]
    assert len({entry.index for entry in group.entries}) == 2


def test_a_label_has_values_as_they_are_typed_and_no_key_twice(tmp_path):
    for limit, own in ((1, False), (2, True)):
        config = {"limit": limit, "threads": limit, "model": {"name": "joey", "threads": limit, "built_in": own}}
        config |= {"task": None if own else "all"}
        write_run(tmp_path, Plan(per_category=1, repeats=1, config=config))
    (group,) = collect(tmp_path).groups
    assert sorted(entry.label for entry in group.entries) == [
        "kangaroo (limit=1, built_in=false, model.threads=1, task=all, threads=1)",
        "kangaroo (limit=2, built_in=true, model.threads=2, task=null, threads=2)",
    ]


def test_ones_own_questions_are_not_said_to_be_a_sets(tmp_path):
    for path in (None, "mine/prompts.txt"):
        config = {"data": {"path": path}, "questions": {"name": "joey" if path is None else "spec_bench"}}
        write_run(tmp_path, Plan(per_category=1, repeats=1, config=config))
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == [
        "kangaroo (questions=joey)",
        "kangaroo (questions=prompts.txt as spec_bench)",
    ]


def test_a_setting_rather_than_a_path_labels_and_orders_runs(tmp_path):
    for layer in (1, 2):
        write_run(
            tmp_path, Plan(per_category=1, repeats=1, settings={"exit_layer": layer, "checkpoint": f"a/{9 - layer}"})
        )
    for folder in ("x/first", "x/second"):
        write_run(tmp_path, Plan(method="rest", per_category=1, repeats=1, settings={"datastore": folder}))
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == [
        *("kangaroo (exit_layer=1)", "kangaroo (exit_layer=2)", "rest (datastore=first)", "rest (datastore=second)")
    ]


def test_the_same_configuration_twice_is_two_runs(tmp_path):
    folder = write_run(tmp_path, Plan(per_category=1, repeats=1))
    again = folder.with_name(f"{folder.name}-2")
    changed(shutil.copytree(folder, again), started="2025-01-02T00:00:00+00:00")
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == ["kangaroo (run 1)", "kangaroo (run 2)"]


def test_a_copy_of_a_run_is_no_measurement_more(tmp_path):
    folder = write_run(tmp_path, Plan(per_category=1, repeats=1))
    copy = shutil.copytree(folder, folder.with_name("copied"))
    found = collect(tmp_path)
    assert [entry.label for group in found.groups for entry in group.entries] == ["kangaroo"]
    first, second = sorted((folder, copy))
    assert found.warnings == (f"left out: {second}: a copy of {first}",)
    (first / "baseline.jsonl").unlink()
    found = collect(tmp_path)
    assert found.groups[0].entries[0].metrics["overall"]["speedup"] > 1, "the fuller one counts"
    assert found.warnings == (f"left out: {first}: a copy of {second}",)
    with (copy / "answers.jsonl").open("r+") as file:
        file.truncate(len(file.readline()))
    (group,) = collect(tmp_path).groups
    assert len(group.entries) == 2, "with other answers it may be one"


def test_paths_that_end_alike_are_told_apart_by_what_is_before(tmp_path):
    for folder in ("/far/x/draft", "/far/y/draft", "/far/z/other"):
        write_run(tmp_path, Plan(method="rest", per_category=1, repeats=1, settings={"datastore": folder}))
    write_run(tmp_path, Plan(method="rest", per_category=1, repeats=1))
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == [
        *("rest", "rest (datastore=x/draft)", "rest (datastore=y/draft)", "rest (datastore=other)")
    ]


def test_shards_of_two_question_files_are_not_merged(tmp_path):
    for part in range(2):
        own = {"questions_sha256": str(part) * 64}
        ids = tuple(range(6 * part, 6 * part + 6))
        plan = Plan(per_category=1, repeats=1, question_ids=ids, config={"shard": f"{part}/2"}, machine=MACHINE | own)
        write_run(tmp_path, plan)
    (group,) = collect(tmp_path).groups
    assert [entry.label for entry in group.entries] == [f"kangaroo (questions_sha256={part * 12})" for part in "01"]


def test_memory_and_cuda_tell_machines_apart(tmp_path):
    small, large = (MACHINE | {"gpu": "GPU", "cuda": "12.8", "memory_bytes": size * 2**30} for size in (8, 256))
    other = large | {"cuda": "12.1"}
    for machine in (small, large, other):
        write_run(tmp_path, Plan(categories=("qa",), per_category=1, machine=machine))
    groups = collect(tmp_path).groups
    assert sorted(group.machine_label for group in groups) == [
        "GPU, float32, eager engine, cuda 12.1, memory_gib 256",
        "GPU, float32, eager engine, cuda 12.8, memory_gib 256",
        "GPU, float32, eager engine, cuda 12.8, memory_gib 8",
    ]


def test_group_runs_of_nothing_is_nothing():
    assert group_runs([]).groups == ()


def test_what_a_step_verifies_is_part_of_every_label_and_other_settings_of_the_paper_are_marked(tmp_path):
    plan = {"model": "vicuna-7b", "demonstration": False, "categories": ("qa",), "per_category": 3}
    changed(write_run(tmp_path, Plan(method="medusa", **plan)), method={"tree": "mc_sim_7b_63", "nodes": 63})
    changed(write_run(tmp_path, Plan(method="lookahead", **plan)), method={"level": 5, "max_accept": 3})
    changed(write_run(tmp_path, Plan(method="rest", **plan)), method={"nodes": 64})
    assert main([f"results_dir={tmp_path}"]) == 0
    table = (tmp_path / "report" / "table1.md").read_text()
    for row in ("| medusa (tree of 63) | measured |", "| medusa (chain) | published, with another setting than ours |",
                "| lookahead (accepts 3) | measured |", "| lookahead (accepts 3) | published |",
                "| rest (tree of up to 64) | measured |", "| rest | published |"):  # fmt: skip
        assert row in table, table
    page = (tmp_path / "report" / "index.html").read_text()
    assert "medusa (tree of 63)" in page and page.count("lookahead, published:") == 1
    assert "medusa, published:" not in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tree": "chain", "nodes": 63}, "chain"),
        ({"tree": "auto", "nodes": 16}, "tree of up to 16"),
        ({"tree": [[0], [0, 0]]}, "tree of 2"),
        ({"tree": "mc_sim_7b_63"}, "tree of 63"),
        ({"tree": "mc_sim_7b_63", "_target_": "methods.eagle.Eagle"}, "tree of 25"),
        ({"tree": "dynamic", "nodes": 60}, "dynamic tree of 59"),
        ({"width": 10, "nodes": 40}, "tree of up to 39"),
        (
            {"_target_": "methods.kangaroo_tree.KangarooTree", "width": 10, "nodes": 40},
            "our reading, tree of up to 39",
        ),
        ({"level": 5, "max_accept": None}, "accepts 4"),
        ({"gamma": 6}, ""),
    ],
)
def test_the_shape_of_a_step_in_words(settings, said):
    assert shape(SimpleNamespace(config={"method": settings}))[0] == said


def test_two_models_of_one_name_are_two_tables(tmp_path):
    plan = {"categories": ("qa",), "per_category": 2}
    changed(write_run(tmp_path, Plan(**plan)), checkpoint_sha256={"target/model.safetensors": "aa", "draft/x": "1"})
    changed(write_run(tmp_path, Plan(method="medusa", **plan)), checkpoint_sha256={"target/model.safetensors": "bb"})
    changed(write_run(tmp_path, Plan(method="rest", **plan)), checkpoint_sha256={"target/model.safetensors": "aa"})
    groups = {tuple(e.run.method for e in group.entries): group.model for group in collect(tmp_path).groups}
    assert set(groups) == {("kangaroo", "rest"), ("medusa",)} and len({*groups.values()}) == 2
    assert all(re.fullmatch(r"joey \([0-9a-f]{7}\)", name) for name in groups.values())


def test_lines_of_the_cost_chart_whose_names_would_touch_are_left_out() -> None:
    def drawn(cr: float) -> list[float]:
        return [c for c, _, _ in CostChart.of([{"cr": cr, "decode_speedup": 1.2}]).lines()]

    assert drawn(1.5) == [0, 0.25, 0.5, 1, 2] and drawn(5.3) == [0, 0.5, 1, 2, 4, 8]
