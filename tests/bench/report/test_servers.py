"""The page's section on servers, from records written as bench.serve writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.report.collect import collect
from bench.report.command import main
from bench.report.figures import figure_load, write_figures
from bench.report.servers import crossing_span, divergences, load_curve, speedup_chart, view, write_servers
from bench.serve.metrics import Comparison
from bench.serve.records import Records

NAME = "<b>ngram"


def answer(question: int, side: str, level: int, seconds: float, text: str) -> dict[str, Any]:
    said = {"accepted": 6, "drafted": 12, "steps": None, "deeper": [4, 2]} if side == "speculative" else None
    return {
        "question_id": question, "category": "qa", "subtask": "qa", "repeat": 0, "turn": 0, "level": level, "block": 0,
        "side": side, "attempt": f"{side}{level}", "status": "ok", "prompt_sha256": "p", "new_tokens": 11,
        "wall_s": seconds, "ttft_s": 0.1, "times_s": [0.1, seconds], "cached_tokens": 0, "miscounted": False,
        "acceptance": said, "text": text,
    }  # fmt: skip


def write_pair(results: Path) -> Path:
    folder = results / "serve" / "tiny" / "ngram" / "0123"
    folder.mkdir(parents=True)
    servers = {side: {"engine": "vllm", "version": "0.32.0", "model": "tiny"} for side in ("speculative", "baseline")}
    config = {"concurrency": [1, 8], "server": {"hardware": "8 boards"}}
    info = {"model": "tiny", "method": NAME, "config": config, "servers": servers, "models": {}, "demonstration": False}
    (folder / "run.json").write_text(json.dumps(info))
    requests, blocks, verdicts = [], [], []
    for level, gain in ((1, 2.0), (8, 0.5)):
        for side in ("speculative", "baseline"):
            block = {"level": level, "repeat": 0, "block": 0, "side": side, "attempt": f"{side}{level}", "wall_s": 4.0}
            blocks.append(block | {"client_cpu_share": 0.2, "acceptance": None, "counted_tokens": None})
            for question in range(6):
                text = "the same <i>text</i>" + (" ours" if side == "speculative" and question == 3 else " and on")
                seconds = (2.0 + question / 10) / (gain if side == "speculative" else 1.0)
                requests.append(answer(question, side, level, seconds, text))
        for question in range(6):
            apart = {"verdict": "divergent", "position": 9, "margin": 2.5} if question == 3 else {"verdict": "equal"}
            found = {"level": level, "repeat": 0, "question_id": question, "turn": 0, "position": None, "margin": None}
            verdicts.append(found | apart | {"unit": "token"})
    for name, lines in (("requests", requests), ("blocks", blocks), ("fidelity", verdicts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("servers")
    write_pair(results)
    assert main([f"results_dir={results}"]) == 0
    return results / "report"


def test_the_page_has_a_section_of_servers_and_no_leaderboard(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert 'id="servers"' in page and "Leaderboard" not in page and not (report / "leaderboard.csv").exists()
    assert "2.00 [2.00, 2.00]" not in page and NAME not in page and "&lt;b&gt;ngram" in page
    assert "Requests at a time at which the speedup falls to 1: 2.8" in page
    assert "the same &lt;i&gt;text&lt;/i&gt; <mark>and on</mark>" in page and "2.5 nats apart" in page
    assert "Acceptance in 8 words" in page and "spec_accept_length" in page and "2.60" in page and "8 boards" in page
    assert "1 turn divergent from the plain server" in page


def test_every_figure_is_in_the_table(report: Path) -> None:
    table = pd.read_csv(report / "servers.csv")
    assert table.level.tolist() == [1, 8] and table.divergent.tolist() == [1, 1]
    assert table.speedup.tolist() == pytest.approx([2.0, 0.5])
    assert table.cr.tolist() == pytest.approx([10 / 4] * 2) and table.ctar_1.tolist() == pytest.approx([1.0] * 2)


def test_the_load_is_a_figure_that_crosses_1_where_the_page_says(report: Path) -> None:
    for ending in ("png", "pdf"):
        assert (report / f"figure_load_tiny_-b-ngram.{ending}").stat().st_size > 5000
    (one,) = collect(report.parent).servers
    x, y = load_curve(one.metrics["levels"], "speedup")
    assert (x[0], x[-1], y[0], y[-1]) == pytest.approx((1, 8, 2.0, 0.5))
    assert np.interp(-1, -y, x) == pytest.approx(one.metrics["crossing"]["at"], rel=0.01)
    figure = figure_load(one.metrics)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "8"] and "ngram on vllm" in axes.get_title()
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    bar = lines["falls to 1 at 2.8 [2.8, 2.8]"].get_xdata()
    assert bar == pytest.approx([one.metrics["crossing"][end] for end in ("low", "high")])
    x, y = axes.get_lines()[0].get_data()  # the curve as it is drawn meets 1 at the stroke in the bar
    (stroke,) = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "|"]
    assert np.interp(-1, -np.asarray(y), x) == pytest.approx(stroke, rel=0.01)
    rows = [{**row, "speedup": None, "throughput_ratio": None} for row in one.metrics["levels"]]
    assert figure_load({**one.metrics, "levels": rows}) is None and figure_load({**one.metrics, "levels": []}) is None


def test_the_pages_chart_takes_levels_in_any_order_and_throughput_where_speed_is_unknown(report: Path) -> None:
    (one,) = collect(report.parent).servers
    levels = one.metrics["levels"]
    assert speedup_chart({**one.metrics, "levels": levels[::-1]}) == speedup_chart(one.metrics) is not None
    unknown = {"speedup": None, "speedup_low": None, "speedup_high": None}
    chart = str(speedup_chart({**one.metrics, "crossing": None, "levels": [{**row, **unknown} for row in levels]}))
    assert "throughput ratio over the plain server" in chart and "1 at a time: 1.000" in chart
    assert speedup_chart({**one.metrics, "levels": []}) is None


@pytest.mark.parametrize(
    ("at", "low", "high", "span", "label"),
    [
        (2.0, 1.5, 4.0, (1.5, 4.0), "falls to 1 at 2.0 [1.5, 4.0]"),
        (None, 5.0, None, (5.0, 8), "falls to 1 at &gt; 8 [5.0, &gt; 8]"),
        (0.0, 0.0, 3.0, (1, 3.0), "falls to 1 at ≤ 1 [≤ 1, 3.0]"),
        (None, None, None, None, None),
        (0.0, 0.0, 0.0, None, None),
    ],
)
def test_a_crossing_beyond_the_levels_shows_what_of_its_interval_is_among_them(
    report: Path, at: Any, low: Any, high: Any, span: Any, label: Any
) -> None:
    (one,) = collect(report.parent).servers
    crossing = {"at": at, "low": low, "high": high, "levels": [1, 8]}
    assert crossing_span(crossing) == span and crossing_span(None) is None
    found = {**one.metrics, "crossing": crossing}
    chart, figure = str(speedup_chart(found)), figure_load(found)
    assert figure is not None and ("falls to 1 at" in chart) is (label is not None)
    bars = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("falls")]
    assert len(bars) == (span is not None) and (label is None or label in chart)


def test_a_launched_servers_machine_is_shown_and_what_its_answers_are_read_by(report: Path) -> None:
    (one,) = collect(report.parent).servers
    facts = dict(view(one)["facts"])
    assert facts["servers' hardware"] == "8 boards" and facts["answers are read as in"].startswith("vLLM 0.32's")
    server = one.records.info["config"]["server"]
    server |= {"launch": "serve {port}"}
    one.records.info.update(gpu="2 × Card A", driver="550.54", cpu="Some", memory_bytes=2**35)
    said = dict(view(one)["facts"])["servers' hardware"]
    assert said == "8 boards; as found where they were started: 2 × Card A, driver 550.54, Some, 32 GiB"


def test_pairs_of_one_name_have_a_figure_each(tmp_path: Path) -> None:
    other = shutil.copytree(write_pair(tmp_path), tmp_path / "serve" / "tiny" / "ngram" / "4567")
    found = collect(tmp_path)
    assert len(found.servers) == 1 and found.warnings[0].endswith(f"a copy of {other.with_name('0123')}")
    first = other.with_name("0123")
    kept = (first / "requests.jsonl").read_text()
    for broken, said in (("", f"left out: {first}: a copy of {other}"), ("{}\n", f"left out: {first}: ")):
        (first / "requests.jsonl").write_text(broken)
        found = collect(tmp_path)
        assert [one.records.folder for one in found.servers] == [other] and found.warnings[0].startswith(said)
    (first / "requests.jsonl").write_text(kept)
    for name in ("blocks.jsonl", "requests.jsonl"):
        (other / name).write_text((other / name).read_text().replace('"attempt": "', '"attempt": "other '))
    found = collect(tmp_path)
    assert len(found.servers) == 2 and not found.warnings
    written = write_figures(found, tmp_path)
    assert len({*written}) == 4 and all(file.is_file() for file in written)


def test_a_broken_pair_is_left_out_and_said(tmp_path: Path) -> None:
    write_pair(tmp_path)
    odd = tmp_path / "serve" / "tiny" / "odd" / "1"
    odd.mkdir(parents=True)
    (odd / "run.json").write_text("{}")
    (odd / "blocks.jsonl").write_text('{"level": 1}\n')
    collection = collect(tmp_path)
    assert len(collection.servers) == 1
    (warning,) = collection.warnings
    assert warning.startswith(f"left out: {odd}: ") and "the key 'repeat' is missing" in warning


def test_without_servers_nothing_is_written(tmp_path: Path) -> None:
    assert write_servers([], tmp_path) == [] and not any(tmp_path.iterdir())


def test_a_difference_is_shown_with_what_is_around_it() -> None:
    place = {"level": 1, "repeat": 0, "question_id": 1, "turn": 0}
    said = [("speculative", "x" * 100 + "A" * 100), ("baseline", "x" * 100 + "B" * 100)]
    requests = [{**place, "side": side, "status": "ok", "text": text} for side, text in said]
    records = Records(Path("nowhere"), {}, requests, [], [{**place, "verdict": "divergent"}])
    (one,) = divergences(Comparison(records, {}))
    assert (one["shared"], one["ours"], one["theirs"]) == ("x" * 60, "A" * 60, "B" * 60)
