"""Tables and figures of a results folder, and the mistakes a user can make."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.records.frame import read_run
from bench.report import answers
from bench.report.ablations import figure_threshold, kangaroo_settings, step_cost
from bench.report.collect import collect
from bench.report.command import main
from bench.report.figures import figure1_ctar_subtasks
from bench.report.style import STYLE
from bench.report.svg import speedup_chart
from bench.report.tables import PAPER_ORDER, ranks, write_tables
from tests.bench.report.simulate import MACHINE, Plan, Truth, write_run
from tests.bench.report.test_groups import GPU, changed

VICUNA = Plan(model="vicuna-7b", demonstration=False, per_category=3, repeats=2, dtype="float16", machine=GPU)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_run(folder, Plan(method="vanilla", truth=Truth(gamma=0, step_cost=0), per_category=3))
    write_run(folder, Plan(truth=Truth(0.7, 0.3), per_category=3))
    write_run(folder, Plan(method="medusa", truth=Truth(0.4, 0.2, 4), per_category=3))
    write_run(folder, VICUNA)
    assert main([f"results_dir={folder}"]) == 0
    return folder


def test_everything_is_written(results):
    names = {path.name for path in (results / "report").iterdir()}
    figures = ("figure1_ctar", "figure1_ctar_subtasks", "figure1_speedup")
    expected = {f"table1.{e}" for e in ("md", "csv", "tex")} | {"leaderboard.md", "leaderboard.csv"}
    expected |= {f"{f}{slug}.{e}" for f in figures for slug in ("", "_vicuna-7b_B") for e in ("png", "pdf")}
    assert expected <= names


def test_published_row_beside_the_measured_one(results):
    table = rows(results / "report" / "table1.csv")
    vicuna = [row for row in table if row["model"] == "vicuna-7b"]
    assert [row["source"] for row in vicuna] == ["measured", "published"]
    assert vicuna[1]["math_reasoning_speedup"] == "1.61" and vicuna[1]["average_speedup"] == "1.5"
    joey = [row for row in table if row["model"] == "joey"]
    assert {row["source"] for row in joey} == {"measured"} and {row["demonstration"] for row in joey} == {"True"}
    assert "demonstration" in (results / "report" / "table1.md").read_text()


def test_table_and_leaderboard_show_the_metrics(results):
    collection = collect(results)
    table = {(r["machine"], r["model"], r["method"]): r for r in rows(results / "report" / "table1.csv")[:3]}
    board = {(r["model"], r["method"], r["subtask"]): r for r in rows(results / "report" / "leaderboard.csv")}
    for entry in collection.groups[0].entries:
        for subtask in PAPER_ORDER:
            row = entry.metrics["subtasks"][subtask]
            assert float(table["A", "joey", entry.label][f"{subtask}_speedup"]) == row["speedup"]
            assert float(board["joey", entry.label, subtask]["speedup_low"]) == row["speedup_low"]
            assert float(board["joey", entry.label, subtask]["ctar_2"]) == row["ctar"][1]


def test_latex_is_balanced_and_escaped(results):
    text = (results / "report" / "table1.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body if "multicolumn" not in line} == {14}
    assert not re.search(r"(?<!\\)_", "".join(body))


def test_latex_is_ascii_and_as_wide_as_the_page(tmp_path):
    odd = replace(VICUNA, model="vicuna-中é", settings={"variant": "medusa"}, truth=Truth(0.3, 0.43, noise=0.4))
    write_run(tmp_path, odd)  # as fast as the baseline: figures with a warning
    write_tables(collect(tmp_path), tmp_path)
    for name in ("table1.tex", "table2.tex"):
        text = (tmp_path / name).read_text()
        assert text.isascii() and "vicuna-U+4E2DU+00E9" in text and text.count(r"$^\dagger$") > 1
        tables = text.count(r"\begin{tabular}")
        assert tables and text.count("\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}") == tables
        assert text.count("\\end{tabular}}\n") == tables
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex; the rest holds")
    document = [r"\documentclass[10pt]{article}\usepackage{booktabs,graphicx}\begin{document}"]
    document += [rf"\begin{{table}}\input{{{name}}}\end{{table}}" for name in ("table1", "table2")]
    (tmp_path / "all.tex").write_text("\n".join([*document, r"\end{document}"]))
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-3000:]


def test_figures_are_readable_at_column_width_with_embedded_fonts(results):
    with Image.open(results / "report" / "figure1_ctar.png") as image:
        assert image.width == 670 and len(image.convert("RGB").getcolors(1 << 20)) > 100
    pdf = (results / "report" / "figure1_ctar.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_warnings_stand_beside_their_figures(tmp_path):
    write_run(tmp_path, Plan(truth=Truth(0.3, 0.43, noise=0.5), per_category=3))
    assert main([f"results_dir={tmp_path}"]) == 0
    overall = rows(tmp_path / "report" / "leaderboard.csv")[-1]
    assert "interval includes 1" in overall["warnings"] and "repeats differ" in overall["warnings"]
    for name, mark in (("leaderboard.md", "⚠"), ("table1.md", "⚠"), ("table1.tex", r"$^\dagger$")):
        assert mark in (tmp_path / "report" / name).read_text().split("joey", 1)[1]


def test_an_average_is_marked_as_the_overall_figure_is(tmp_path):
    truth = Truth(0.3, 0.43, noise=0.5)
    write_run(tmp_path, Plan(truth=truth, per_category=3, settings={"variant": "mlp_only"}, method="kangaroo"))
    assert main([f"results_dir={tmp_path}"]) == 0
    for name, mark in (("table1.md", "⚠ |"), ("table1.tex", r"$^\dagger$ \\"), ("table2.md", "⚠ |")):
        lines = (tmp_path / "report" / name).read_text().splitlines()
        (row,) = [line for line in lines if "kangaroo" in line and "demonstration" in line]
        assert row.endswith(mark), row
    assert rows(tmp_path / "report" / "table1.csv")[0]["warned"].split()[-1] == "average"


def test_what_was_not_measured_has_no_mark_but_for_what_is_wrong_with_it(tmp_path):
    write_run(tmp_path, Plan(per_category=1, repeats=1, categories=("qa",)))  # no average of six
    write_run(tmp_path, Plan(per_category=1, repeats=1, baseline=False, mismatched_turns=12, method="rest"))
    assert main([f"results_dir={tmp_path}"]) == 0
    table = {row["method"]: row["warned"] for row in rows(tmp_path / "report" / "table1.csv")}
    assert table["kangaroo"] == "qa" and "qa" in table["rest"].split() and "average" not in table["rest"]
    (line,) = [text for text in (tmp_path / "report" / "table1.tex").read_text().splitlines() if "& rest" in text]
    assert line.count(r"& $^\dagger$") + line.count(r"&  $^\dagger$") + line.count(r"&$^\dagger$") >= 1, line


def test_one_question_has_a_mark_that_the_legend_explains(tmp_path):
    write_run(tmp_path, Plan(per_category=1, repeats=1))
    assert main([f"results_dir={tmp_path}"]) == 0
    texts = [(tmp_path / "report" / name).read_text() for name in ("leaderboard.md", "table1.md", "index.html")]
    assert all("it has no interval, as of one question" in text and "⚠" in text for text in texts)
    assert "1 question: no interval" in texts[-1]


def test_ablations_and_table2_where_such_runs_exist(tmp_path):
    plan = replace(VICUNA, repeats=1, per_category=1)
    for layer, place in ((1, tmp_path), (2, tmp_path), (3, tmp_path / "experiments")):
        changed(write_run(place, replace(plan, settings={"exit_layer": layer, "gamma": 6, "eta": 0.6})), layers=32)
    for eta in (0.2, 0.4):
        write_run(tmp_path, replace(plan, settings={"exit_layer": 2, "gamma": 6, "eta": eta}))
    write_run(tmp_path, replace(plan, settings={"exit_layer": 2, "gamma": 6, "eta": 0.6, "variant": "mlp_only"}))
    assert main([f"results_dir={tmp_path}"]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    figures = ("figure_exit_layer", "figure_exit_layer_share", "figure_threshold", "step_cost")
    assert {f"{figure}.{e}" for figure in figures for e in ("png", "pdf")} <= names
    table = [row for row in rows(tmp_path / "report" / "table2.csv") if row["method"].startswith(("mlp", "kangaroo"))]
    assert ("mlp_only", "published", "1.22") in [(r["method"], r["source"], r["average_speedup"]) for r in table]
    assert any(row["source"] == "measured" and row["parameters"] == "67000000" for row in table)
    layers = kangaroo_settings(collect(tmp_path).groups[0])
    assert sorted(layers.exit_layer) == [1, 2, 2, 2, 3]  # the other architecture is no point of these curves


def test_a_sweep_is_made_of_runs_that_differ_in_nothing_else(tmp_path):
    plan = replace(VICUNA, repeats=1, per_category=1, categories=("qa",))
    settings = {"exit_layer": 2, "gamma": 6}
    for eta in (0.2, 0.4, 0.6):
        write_run(tmp_path, replace(plan, settings=settings | {"eta": eta}))
    write_run(tmp_path, replace(plan, settings=settings | {"eta": 0.5}, config={"limit": 3}))
    other = write_run(tmp_path, replace(plan, settings=settings | {"eta": 0.8}))
    info = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(info | {"checkpoint_sha256": {"draft/pytorch_model.bin": "1" * 64}}))
    figure = figure_threshold(collect(tmp_path).groups[0])
    measured = figure.axes[0].get_lines()
    assert [list(line.get_xdata()) for line in measured if line.get_linestyle() == "-"] == [[0.2, 0.4, 0.6]]


def test_small_panels_share_a_scale_that_holds_every_curve(tmp_path):
    write_run(tmp_path, Plan(categories=("writing",), per_category=2, truth=Truth(0.2)))
    write_run(tmp_path, Plan(method="rest", categories=("qa",), per_category=2, truth=Truth(0.9), question_ids=(8, 9)))
    figure = figure1_ctar_subtasks(collect(tmp_path).groups[0])
    for axes in figure.axes[:2]:
        (line,) = axes.get_lines()
        assert min(line.get_ydata()) >= 0 and max(line.get_ydata()) < axes.get_ylim()[1] == figure.axes[0].get_ylim()[1]


def test_many_methods_leave_room_for_step_cost(tmp_path):
    for number in range(14):
        write_run(tmp_path, Plan(method=f"method_number_{number}", categories=("qa",), per_category=1, tokens=20))
    with warnings.catch_warnings(), plt.rc_context(STYLE):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # an old matplotlib's, of what it calls in a new pyparsing
        figure = step_cost(collect(tmp_path).groups[0])
        figure.draw_without_rendering()
    assert figure.axes[0].get_position().height > 0.3


def test_names_from_files_are_no_markup_and_no_paths(tmp_path):
    name = "meta/Llama $x_{$ <script>\n| a"
    write_run(tmp_path, Plan(categories=("qa",), per_category=1))
    write_run(tmp_path, Plan(method="medusa", categories=("qa",), per_category=1))
    folder = write_run(tmp_path, Plan(method="rest", categories=("qa",), per_category=1))
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"model": name, "method": name}))
    assert main([f"results_dir={tmp_path}"]) == 0
    board = (tmp_path / "report" / "leaderboard.md").read_text()
    assert "<script>" not in board and "&lt;script\\> \\| a" in board
    assert all(line.startswith(("%", "\\", "Model", " &", "joey", "meta")) or not line
               for line in (tmp_path / "report" / "table1.tex").read_text().splitlines())  # fmt: skip
    assert "figure1_ctar_meta-Llama-x_-script-a_A.png" in {p.name for p in (tmp_path / "report").iterdir()}


@pytest.mark.parametrize("name", ["spec_bench", "mine"])
def test_table1_is_of_the_papers_questions_only(tmp_path, name):
    """A set of one's own may have a subtask that is called as one of the paper's."""
    own = {"questions": {"name": name, "source": "x", "revision": None, "sha256": None, "subtasks": None}}
    write_run(tmp_path, Plan(model="vicuna-7b", categories=("qa", "poems"), per_category=2, config=own))
    write_tables(collect(tmp_path), tmp_path)
    assert (tmp_path / "table1.csv").is_file() == (name == "spec_bench")
    assert {row["subtask"] for row in rows(tmp_path / "leaderboard.csv")} == {"qa", "poems", "overall"}
    (group,) = collect(tmp_path).groups
    assert bool(speedup_chart(group, "qa").count("published")) == (name == "spec_bench")


@pytest.mark.parametrize("same", [True, False])
def test_a_file_of_ones_own_is_of_the_paper_only_if_it_is_the_papers(tmp_path, same):
    questions = {"name": "spec_bench", "source": "x", "revision": None, "sha256": "1" * 64, "subtasks": None}
    config = {"questions": questions, "data": {"path": "mine.jsonl"}}
    folder = write_run(tmp_path, Plan(model="vicuna-7b", categories=("qa",), per_category=2, config=config))
    changed(folder, questions_sha256=("1" if same else "2") * 64)
    write_tables(collect(tmp_path), tmp_path)
    assert (tmp_path / "table1.csv").is_file() == same


def test_another_question_file_is_said(tmp_path):
    write_run(tmp_path, Plan(categories=("qa",), per_category=2))
    folder = write_run(tmp_path, Plan(method="rest", categories=("qa",), per_category=2))
    text = (folder / "answers.jsonl").read_text()
    (folder / "answers.jsonl").write_text(text.replace("0" * 64, "1" * 64))
    assert "2 questions asked with another prompt in some runs" in str(collect(tmp_path).groups[0].warnings)


def test_coloured_steps_count_as_a_browser_does(tmp_path):
    from tokenizers import Tokenizer, models

    words = {"a": 0, "\U0001f600": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    texts = answers.Texts()
    texts.place("a \U0001f600 b", np.array([0, 1, 2]), tokenizer)
    text, lengths = texts.items[0]
    assert text == "a \U0001f600 b" and lengths == "132"


def test_an_output_that_cannot_be_written_is_one_line(results, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([f"results_dir={results}", f"output={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.startswith(f"output={tmp_path / 'file'}: File exists; valid: a folder")


def test_records_hold_every_turn(results):
    frame = pd.read_parquet(results / "report" / "records.parquet")
    answers = frame[(frame.method == "medusa") & (frame.side == "method")]
    assert len(answers) == 21 * 3 and answers.emitted.sum() == answers.lengths.map(sum).sum()
    assert set(frame.side) == {"method", "baseline"} and set(frame.machine) == {"A", "B"}


def test_methods_are_ranked_only_where_intervals_allow(tmp_path):
    for seed, (method, cost) in enumerate((("kangaroo", 0.1), ("medusa", 0.32), ("rest", 0.3))):
        write_run(tmp_path, Plan(method=method, truth=Truth(0.6, cost, question_noise=0.1), seed=seed))
    write_run(tmp_path, Plan(method="lookahead", baseline=False))
    assert ranks(collect(tmp_path).groups[0]) == {"kangaroo": 1, "medusa": 2, "rest": 2, "lookahead": None}


def test_different_questions_are_said(tmp_path):
    write_run(tmp_path, Plan(per_category=1))
    write_run(tmp_path, Plan(method="medusa", per_category=2))
    assert "not all methods answered the same questions (kangaroo 6, medusa 12)" in str(collect(tmp_path))


def test_a_run_without_answers_is_left_out_and_said(tmp_path):
    folder = write_run(tmp_path, Plan(per_category=1))
    other = write_run(tmp_path, Plan(method="medusa", per_category=1))
    (other / "answers.jsonl").unlink()
    collection = collect(tmp_path)
    assert len(collection.groups[0].entries) == 1 and "no answers recorded yet" in collection.warnings[0]
    (folder / "answers.jsonl").write_text("")
    assert main([f"results_dir={tmp_path}"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["result_dir=x"], "did you mean results_dir?"),
        (["results_dir"], "expected results_dir=VALUE"),
        (["results_dir=/no/such/place"], "no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_empty_folder_and_a_broken_line(tmp_path, capsys):
    assert main([f"results_dir={tmp_path}"]) == 2
    assert "no runs in it" in capsys.readouterr().err
    folder = write_run(tmp_path, Plan(per_category=1))
    path = folder / "answers.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    assert main([f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "answers.jsonl line 1: not valid JSON" in error and error.count("\n") == 1


def test_help_says_what_it_takes():
    done = subprocess.run([sys.executable, "-m", "bench.report", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    for word in ("results_dir=", "output=", "import=", "baseline=", "model=", "method=", "--compare A B"):
        assert word in done.stdout


def test_prompts_of_the_built_in_model_and_of_a_downloaded_file(tmp_path, monkeypatch):
    lines = [json.dumps({"question_id": n, "category": "qa", "turns": [f"prompt {n}"]}) + "\n" for n in (1, 2)]
    for place in ("built_in.jsonl", "cache/speculative-bench/question.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("".join(lines))
    monkeypatch.setattr(answers, "BUILT_IN", tmp_path / "built_in.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, built_in in enumerate((True, False)):
        config = {"model": {"name": "joey", "built_in": built_in}, "data": {"path": None}}
        run = read_run(write_run(tmp_path, Plan(per_category=1, repeats=1, seed=seed, config=config)))
        assert answers.prompts(run) == {1: ["prompt 1"], 2: ["prompt 2"]}


def test_prompts_of_any_form_are_shown_from_where_the_run_found_them(tmp_path):
    (tmp_path / "mine.txt").write_text("What?\n\nWho?\n")
    config = {"data": {"path": None}, "questions": {"name": "mine", "source": "owner/name"}}
    own = MACHINE | {"questions_file": str(tmp_path / "mine.txt")}
    run = read_run(write_run(tmp_path, Plan(per_category=1, repeats=1, config=config, machine=own)))
    assert answers.prompts(run) == {1: ["What?"], 3: ["Who?"]}


@pytest.mark.slow
def test_a_report_of_spec_benchs_size_is_quick_and_small():
    """480 questions, 3 repeats, 12 methods. Ten seconds are for an idle machine; a busy one may take twice that."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.speed.report"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    patterns = (r"\(([\d.]+) s of CPU", r"memory ([\d.]+) GiB", r"page ([\d.]+) MiB")
    seconds, gibibytes, page = (float(re.search(pattern, done.stdout).group(1)) for pattern in patterns)
    assert seconds < 20 and gibibytes < 0.93 and page < 4.7
