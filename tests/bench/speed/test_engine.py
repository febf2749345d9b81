"""bench.speed on a tiny model: what it records, and its arithmetic on recorded turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gauge import Card, Gauge
from bench.measure import Timed
from bench.predict.costs import Measured
from bench.speed.__main__ import _keep_older, main
from bench.speed.engine import Pair, pass_costs, shares, summarise
from bench.words import MEMORY_LIMIT
from methods.decoder import Generation, Step
from methods.engine.llama import Llama
from methods.errors import UserError
from tests.bench.small_run import SmallRun
from tests.bench.test_gauge import UUID, Memory, Nvml
from tests.tiny import tiny_llama


def timed(wall_s: float, tokens: int, steps: int) -> Timed:
    each = (tokens - 1) // steps
    generation = Generation(tuple(range(tokens)), tuple(Step(2, each) for _ in range(steps)), "length")
    return Timed(generation, wall_s, 0.1 * wall_s, 0.2 * wall_s, 0.6 * wall_s)


def test_speedups_are_paired_by_question() -> None:
    pairs = [Pair(question, timed(1.0, 13, 4), timed(2.0 + question, 13, 12)) for question in (0, 2) for _ in range(3)]
    row = summarise(pairs)
    assert row["speedup_paired"] == pytest.approx((2 * 4) ** 0.5) and row["ratios"] == [[2.0] * 3, [4.0] * 3]
    assert row["cr"] == 3.0 and row["equal"] and row["tokens_per_s"] == 13.0


def test_what_phases_leave_is_overhead() -> None:
    found = shares([timed(1.0, 13, 4), timed(3.0, 13, 4)])
    assert found == pytest.approx({"prefill": 0.1, "draft": 0.2, "verify": 0.6, "overhead": 0.1})


def test_every_number_of_rows_is_timed() -> None:
    costs = pass_costs(tiny_llama(), [1, 4], past=16, passes=3)
    assert list(costs) == [1, 4] and all(value > 0 for value in costs.values())


def test_a_whole_measurement(tmp_path: Path, capsys) -> None:
    small = SmallRun.make(tmp_path)
    threads = torch.get_num_threads()
    overrides = [
        "model=custom",
        f"model.path={small.folder / 'model'}",
        "model.exit_layer=1",
        f"method.checkpoint={small.folder / 'adapter'}",
        f"data.path={small.folder / 'question.jsonl'}",
        f"results_dir={tmp_path / 'results'}",
        *("dtypes=[float32]", "threads=[1]", "repeats=1", "max_new_tokens=8", "passes=2", "past=8", "rows=[1,2]"),
        "limit=2",
    ]
    assert main(overrides) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "hf_generate" in printed and "kangaroo" in printed and "differ" not in printed
    record = json.loads((tmp_path / "results" / "speed" / "model.json").read_text())
    (section,) = record["sections"]
    assert set(section["methods"]) == {"hf_generate", "kangaroo"} and section["threads"] == 1
    assert record["model"] == "model" and section["dtype"] == "float32"
    turns = section["methods"]["kangaroo"]["turns"]
    assert {len(values) for side in turns.values() for values in side.values()} == {5}
    read = Measured.read(tmp_path / "results" / "speed" / "model.json", "model", "kangaroo", "float32", 1).turns
    assert read is not None and read[0].steps.tolist() == [len(steps) for steps in turns["method"]["drafted"]]
    assert section["methods"]["kangaroo"]["settings"]["exit_layer"] == 1
    assert all(len(row["ratios"]) == 5 for row in section["methods"].values()), "up to two questions of each subtask"
    assert section["uncaptured"] == {} and "not captured" not in printed
    for row in section["methods"].values():
        assert 0 < row["vanilla_memory_share"] < 1 and not any(row["throttled"])
        assert {value for side in row["readings"].values() for value in side.values()} == {None}
    share = section["methods"]["hf_generate"]["vanilla_memory_share"]
    assert f"vanilla's decoding {share:.0%}" in printed and section["card"] is None
    assert ("! kangaroo: the baseline reaches" in printed) == (
        section["methods"]["kangaroo"]["vanilla_memory_share"] < MEMORY_LIMIT
    )


def test_a_cards_readings_stand_beside_the_speeds(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    small, nvml, memory = SmallRun.make(tmp_path), Nvml(), Memory()
    nvml.reasons = 0x40
    memory.add(2_000_000_000)

    def energy(handle: str) -> int:
        nvml.energy += 4000  # is asked before and behind every turn
        return nvml.energy

    def gauge(device: torch.device) -> Gauge:
        made = Gauge(device, memory, Card.find(nvml, UUID))
        made.held.update(method=300_000_000, baseline=100_000_000)
        return made

    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", energy)

    monkeypatch.setattr(Gauge, "of", gauge)
    changes = [
        "model=custom",
        f"model.path={small.folder / 'model'}",
        "model.weights=random",
        "methods=[lookahead,pld]",
    ]
    tiny = ["dtypes=float32", "threads=1", "repeats=1", "prompt_tokens=8", "max_new_tokens=8", "passes=2", "past=8"]
    assert main([*changes, *tiny, "rows=1", f"results_dir={tmp_path / 'results'}"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["of", "the", "card,", "700", "W", "at", "most", "peak", "GB", "J/token", "SM", "MHz", "°C"] in lines
    (section,) = json.loads((tmp_path / "results" / "speed" / "model.json").read_text())["sections"]
    vanilla = section["methods"]["lookahead"]["turns"]["vanilla"]["drafted"]
    joules = 4 * len(vanilla) / sum(len(steps) + 1 for steps in vanilla)
    for name, peak in (("vanilla", "1.70"), ("lookahead", "1.90"), ("pld", "1.90")):
        assert [name, peak, f"{joules:.2f}", "1980", "41"] in lines, "each side without what the other holds"
    assert "! lookahead: the card throttled in 12 of 12 turns (heat, by hardware)" in printed
    assert section["card"]["power_limit_milliwatts"] == 700_000


def test_passes_that_were_not_captured_are_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SmallRun.make(tmp_path)
    monkeypatch.setattr(Llama, "unprepared", "3 target or draft passes were not captured")
    changes = ["model=custom", f"model.path={small.folder / 'model'}", "model.weights=random", "methods=lookahead"]
    tiny = ["dtypes=float32", "threads=1", "repeats=1", "prompt_tokens=8", "max_new_tokens=8", "passes=2", "past=8"]
    assert main([*changes, *tiny, "rows=1", f"results_dir={tmp_path / 'results'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("passes by rows", "lookahead"):
        assert f"! {name}: 3 target or draft passes were not captured" in lines


def test_a_measuring_that_may_not_be_renamed_is_one_line_and_stays(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*names: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    (file := tmp_path / "joey.json").write_text("{}")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        UserError, match=r"joey.json cannot be renamed \(Operation not permitted\), and is not replaced"
    ):
        _keep_older(file)
    assert file.read_text() == "{}"


def test_random_weights_need_no_tokenizer(tmp_path: Path) -> None:
    small = SmallRun.make(tmp_path)
    (small.folder / "model" / "tokenizer.json").unlink()
    changes = ["model=custom", f"model.path={small.folder / 'model'}", "model.weights=random", "methods=lookahead"]
    tiny = ["dtypes=float32", "threads=1", "repeats=1", "prompt_tokens=8", "max_new_tokens=8", "passes=2", "past=8"]
    for rows in (1, 2):
        assert main([*changes, *tiny, f"rows={rows}", "limit=2", f"results_dir={tmp_path / 'results'}"]) == 0
    found = {file.name: json.loads(file.read_text()) for file in (tmp_path / "results" / "speed").iterdir()}
    for name, rows in (("model-1.json", "1"), ("model.json", "2")):  # the first is kept
        (section,) = found[name]["sections"]
        assert len(section["methods"]["lookahead"]["ratios"]) == 12, "two for each of Spec-Bench's subtasks"
        assert [*section["pass_ms"]] == [rows]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dtypes=[float8]", "model.dtype=float8"),
        ("dtypes=float8", "model.dtype=float8"),
        ("metods=[rest]", "metods: unknown"),
        ("method=rest", "method: unknown override; did you mean methods?"),
        ("methods=[rset]", "rset"),
        ("methods=kangaroo", "method.checkpoint: none is configured for model=custom; wanted: a Kangaroo"),
        ("rows=[]", "rows=[]: must be a list, not empty"),
        ("threads=0", "threads=[0]: must be a list, not empty, of names or numbers from 1"),
        ("threads=[a]", 'threads=["a"]: must be an integer'),
        ("llama_cpp=maybe", "llama_cpp=maybe: must be true or false"),
        ("limit=0", "limit=0: must be an integer of at least 1"),
        ("passes=0", "passes=0: must be an integer of at least 1"),
        ("method.gama=3", "method.gama: none of methods=['vanilla'] has this key"),
        (f"results_dir={__file__}", "File exists"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys, override: str, message: str) -> None:
    small = SmallRun.make(tmp_path)
    files = [f"model.path={small.folder / 'model'}", f"data.path={small.folder / 'question.jsonl'}"]
    capsys.readouterr()
    assert main(["model=custom", *files, "methods=vanilla", "threads=[1]", override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
