"""What a device says of a turn: each side's own memory, energy, clocks, throttling; what it does not say is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gauge import Card, Gauge, _card
from bench.measure import timed_generation
from bench.metrics import readings
from bench.records.frame import read_run, turn_frame
from bench.records.lines import choice_of, measured_row, read_rows
from bench.report.collect import collect
from bench.report.details import figure_table
from bench.report.page import write_page
from bench.words import summary
from methods.decoder import Generation, Phases, Step
from tests.bench.report.simulate import Plan, changed, write_run
from tests.bench.test_records import place, turn

UUID = "4f1e7a52-0000-1111-2222-333344445555"
CPU = torch.device("cpu")
READ = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 41, "throttled": "none"}


class Nvml:
    """The functions of pynvml that are asked, with its errors; `lacking` are those a card or driver does not have."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As raised for a UUID that is not there, or what is not supported."""

    def __init__(self, *lacking: str) -> None:
        self.lacking, self.energy, self.reasons, self.ready = lacking, 5000, 0x1, False

    def nvmlInit(self) -> None:
        self.ready = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not self.ready or uuid != f"GPU-{UUID}":
            raise self.NVMLError("Not Found")
        return "second of four"

    def _answer(self, name: str, handle: str, value: int) -> int:
        assert handle == "second of four"
        if name in self.lacking:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._answer("energy", handle, self.energy)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self._answer("reasons", handle, self.reasons)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self._answer("clocks", handle, {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind])

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return self._answer("highest clocks", handle, {self.NVML_CLOCK_SM: 2010, self.NVML_CLOCK_MEM: 2700}[kind])

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._answer("temperature", handle, 41 + sensor)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return self._answer("limit", handle, 700_000)


class Memory:
    """torch.cuda's allocator: what is allocated now, and the most since the last reset."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def memory_allocated(self, device: torch.device) -> int:
        return self.now

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.most

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.most = self.now


class Turn:
    """A generator that spends energy, allocates `passing` for a while and keeps `kept`."""

    context = 64

    def __init__(self, memory: Memory, nvml: Nvml, passing: int, kept: int = 0) -> None:
        self.memory, self.nvml, self.passing, self.kept = memory, nvml, passing, kept

    def generate(self, prompt: torch.Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
        self.memory.add(self.passing)
        self.memory.add(self.kept - self.passing)
        self.nvml.energy += 250
        return Generation((1, 2), (Step(0, 1),), "length")


def test_each_side_has_its_own_peak_and_every_turn_its_energy() -> None:
    memory, nvml = Memory(), Nvml()
    gauge = Gauge(CPU, memory, Card.find(nvml, UUID))
    memory.add(1000)  # the target
    for side, size in (("method", 100), ("baseline", 50), ("method", 200)):
        with gauge.holding(side):
            memory.add(size)
    sides = {"method": Turn(memory, nvml, passing=70, kept=20), "baseline": Turn(memory, nvml, passing=7)}
    for already in (0, 20):  # what the method keeps from its first turn is its own ever after
        for side, generator in sides.items():
            timed = timed_generation(generator, [1], 2, CPU, gauge=gauge, side=side)
            own = 1000 + 50 + 7 if side == "baseline" else 1000 + 300 + already + 70
            assert timed.peak_memory_bytes == own and timed.energy_millijoules == 250
            assert {name: getattr(timed, name) for name in READ} == READ


def test_what_a_failed_turn_left_is_its_sides_own() -> None:
    memory = Memory()

    class Failing:
        context = 8

        def generate(self, prompt: torch.Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
            memory.add(500)
            raise RuntimeError("out of memory")

    gauge = Gauge(CPU, memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        timed_generation(Failing(), [1], 2, CPU, gauge=gauge, side="method")
    memory.add(-480)  # what only the failing frames held
    gauge.settle()
    memory.add(100)  # captured for both sides behind the warm-up
    timed = timed_generation(Turn(memory, Nvml(), passing=7), [1], 2, CPU, gauge=gauge, side="baseline")
    assert timed.peak_memory_bytes == 107 and gauge.held == {"method": 20, "baseline": 0}


def test_a_turn_begun_behind_a_failed_one_leaves_that_ones_memory_to_its_side() -> None:
    memory = Memory()
    gauge = Gauge(CPU, memory)
    gauge.begin("method")
    memory.add(20)  # and it fails
    gauge.begin("baseline")
    memory.add(7)
    assert gauge.end() == {"peak_memory_bytes": 7} and gauge.held == {"method": 20, "baseline": 7}


@pytest.mark.parametrize("before", [True, False])
def test_energy_that_was_told_once_of_a_turn_is_no_difference(before: bool) -> None:
    nvml = Nvml(*([] if before else ["energy"]))
    gauge = Gauge(CPU, None, Card.find(nvml, UUID))
    gauge.begin("method")
    nvml.lacking = ("energy",) if before else ()
    assert gauge.end()["energy_millijoules"] is None


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        ("energy", {"energy_millijoules"}),
        ("reasons", {"throttled"}),
        ("clocks", {"sm_mhz", "memory_mhz"}),
        ("temperature", {"temperature_c"}),
    ],
)
def test_what_a_card_does_not_say_is_missing(lacking: str, missing: set[str]) -> None:
    nvml = Nvml(lacking)
    gauge = Gauge(CPU, None, Card.find(nvml, UUID))
    gauge.begin("method")
    found = gauge.end()
    assert {name for name, value in found.items() if value is None} == missing
    assert found.get("peak_memory_bytes") is None


def test_a_card_is_found_by_its_uuid_and_says_what_stays() -> None:
    assert Card.find(Nvml(), f"GPU-{UUID}").facts() == {
        "power_limit_milliwatts": 700_000,
        "most_sm_mhz": 2010,
        "most_memory_mhz": 2700,
    }
    with pytest.raises(Nvml.NVMLError, match="Not Found"):
        Card.find(Nvml(), UUID.replace("4", "5"))


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, "none"),
        (0x1 | 0x2 | 0x100, "none"),
        (0x4, "power cap"),
        (0x1 | 0x8 | 0x40, "hardware slowdown; heat, by hardware"),
        (0x20 | 0x80, "heat, by software; power brake"),
    ],
)
def test_only_some_reasons_mean_throttling(reasons: int, words: str) -> None:
    nvml = Nvml()
    nvml.reasons = reasons
    assert Card.find(nvml, UUID).state()["throttled"] == words


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_card_nothing_is_read_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With and without the library: here it finds no driver."""
    assert _card(UUID) is None
    assert "energy, clocks and throttling are not recorded: " in capsys.readouterr().err
    assert _card(UUID) is None and not capsys.readouterr().err, "once a process"
    gauge = Gauge.of(CPU)
    gauge.begin("method")
    assert gauge.card is None and gauge.facts() is None and gauge.end() == {}


def test_readings_are_recorded_where_there_are_some() -> None:
    plain = turn()
    assert not set(READ) & choice_of([measured_row(place(1), 0, plain)]).keys()
    told = replace(plain, timed=replace(plain.timed, energy_millijoules=0, peak_memory_bytes=9, **READ))
    rows = [measured_row(place(1), number, one) for number, one in enumerate((plain, told))]
    line = json.loads(json.dumps({**place(1).head, "choices": [choice_of(rows)]}))
    assert line["choices"][0]["energy_millijoules"] == [None, 0]
    found = read_rows(line)[1]
    assert (found.energy_millijoules, found.peak_memory_bytes, found.throttled) == (0, 9, "none")


def test_the_report_shows_both_sides_and_warns_of_throttling(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Plan(per_category=1, repeats=1))
    assert not any("Energy" in name or "memory" in name for name, _ in figure_table([_summary(folder)["overall"]]))
    for side, joules in (("answers", 2), ("baseline", 3)):
        _tell(folder / f"{side}.jsonl", joules, throttled="power cap" if side == "answers" else "none")
    found = _summary(folder)
    shown = {name: cells[0] for name, cells in figure_table([found["overall"]])}
    assert (
        shown["Energy of the card by token, J"] == "2.000"
        and shown["Energy of the card by token, baseline, J"] == "3.000"
    )
    assert shown["Peak device memory, without the other side's, baseline, MiB"] == "3"
    texts = [warning["text"] for warning in found["warnings"] if "throttled" in warning["text"]]
    changed(folder, card={"power_limit_milliwatts": 700_000})
    page = write_page(collect(tmp_path), tmp_path / "report").read_text()
    assert "The card's power limit: 700 W." in page and "the card throttled in " in page
    turns = found["overall"]["throttled_turns"]
    assert texts == [f"the card throttled in {turns} of {2 * turns} turns (power cap): times are not its usual ones"]


def test_a_side_that_did_not_run_has_no_throttled_turns() -> None:
    """Not 0, which would be a reading."""
    assert set(readings(turn_frame([])).values()) == set(readings(None).values()) == {None}


def _summary(folder: Path) -> dict[str, Any]:
    return summary(read_run(folder))


def _tell(file: Path, joules: int, throttled: str) -> None:
    """Write readings beside the turns of a file."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        choice = record["choices"][0]
        tokens = choice["new_tokens"]
        choice["energy_millijoules"] = [1000 * joules * count for count in tokens]
        choice["own_peak_memory_bytes"] = [joules * 2**20] * len(tokens)
        choice["throttled"] = [throttled] * len(tokens)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
