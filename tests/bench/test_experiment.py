from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench import experiment
from bench.assembly import hollow, target_folder
from bench.config import installed
from bench.digests import sha256 as file_sha256
from bench.experiment import Arguments, make_cell, read_experiment
from bench.outlook import outlook
from bench.places import CONF
from bench.settings import Run
from bench.sources import Source
from bench.train.work import compose
from tests.bench.small_run import QUESTIONS, write_questions
from tests.bench.train.chat_model import SPECIAL, WORDS, write_chat_model, write_sharegpt
from tests.servers import COMMIT

ONE_CELL = ["method.gamma=4", "method.eta=0.3"]  # of the grid of name=threshold
TRAINING = {"length": 64, "batch": 2, "accumulation": 1, "epochs": 1, "lr": 1e-2, "warmup_steps": 3}


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model without drafts, questions and training text; every cell and training takes about a second."""
    folder = tmp_path_factory.mktemp("experiment")
    write_chat_model(folder / "model", vocab_size=len(SPECIAL) + len(WORDS))
    write_sharegpt(folder / "data.json", 40)
    write_questions(folder / "question.jsonl", QUESTIONS)
    run = {"model": "custom", "model.path": folder / "model", "data.path": folder / "question.jsonl"}
    run |= {
        "questions.sha256": file_sha256(folder / "question.jsonl"),
        "max_new_tokens": 12,
        "repeats": 1,
        "warmup_turns": 0,
        "model.device": "cpu",
    }
    train = {"training.data.path": folder / "data.json"}
    train |= {f"training.loop.{key}": value for key, value in TRAINING.items()}
    return [f"{key}={value}" for key, value in {**run, **train}.items()]


def times(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_trains_and_measures_what_is_missing_and_nothing_twice(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["name=exit_layer", *common, f"results_dir={tmp_path}"]
    assert experiment.main([*arguments, "method.exit_layer=1,2"]) == 0
    weights, answers = "checkpoints/*/*/pytorch_model.bin", "runs/*/*/*/answers.jsonl"
    first = times(tmp_path, weights) | times(tmp_path, answers)
    assert len(first) == 4
    trained = [json.loads(path.read_text())["exit_layer"] for path in tmp_path.glob("checkpoints/*/*/config.json")]
    assert sorted(trained) == [1, 2]
    for ending in ("png", "pdf"):
        assert (tmp_path / "exit_layer" / f"figure_exit_layer.{ending}").stat().st_size > 5000
    assert "kangaroo  2" in capsys.readouterr().out

    assert experiment.main([*arguments, "method.exit_layer=1,2,3"]) == 0
    second = times(tmp_path, weights) | times(tmp_path, answers)
    assert len(second) == 6 and first.items() <= second.items()
    for folder in tmp_path.glob("runs/*/*/*"):
        config = json.loads((folder / "run.json").read_text())["config"]["method"]
        adapter = json.loads((Path(config["checkpoint"]) / "config.json").read_text())
        assert adapter["exit_layer"] == config["exit_layer"]


def test_table_2_has_every_architecture(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["name=adapter", *common, f"results_dir={tmp_path}", "model.exit_layer=1"]
    assert experiment.main([*arguments, "questions.sha256=null"]) == 2
    assert "is not the file of questions=spec_bench, so table2.md would leave" in capsys.readouterr().err
    assert experiment.main(arguments) == 0
    with (tmp_path / "adapter" / "table2.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "measured"]
    hidden, vocabulary, swiglu, keys = 32, 67, 48, 16
    attention = 2 * hidden * hidden + 2 * hidden * keys + 2 * hidden
    expected = {
        "medusa": 4 * (hidden * hidden + hidden + hidden * vocabulary),
        "kangaroo": attention,
        "kangaroo_head": attention + hidden * vocabulary,
        "one_layer_transformer": attention + 3 * hidden * swiglu + hidden,
        "mlp_only": 2 * hidden * hidden + 2 * hidden + hidden * vocabulary,
    }
    found = {row["method"]: int(row["parameters"]) for row in rows}
    assert sorted(found.values()) == sorted(expected.values())


def test_one_draft_serves_all_thresholds(common: list[str], tmp_path: Path) -> None:
    experiment_, others = read_experiment(installed(), "threshold", "custom").narrowed(common[:7])
    arguments = Arguments("threshold", "custom", tmp_path, others, [o.removeprefix("training.") for o in common[7:]])
    cells = [make_cell(installed(), experiment_, arguments, overrides) for overrides in experiment_.cells()]
    assert len(cells) == 18 and len({cell.output for cell in cells}) == 1
    changed = Arguments("threshold", "custom", tmp_path, others, [*arguments.train, "loop.lr=1"])
    assert make_cell(installed(), experiment_, changed, next(experiment_.cells())).output != cells[0].output


def test_a_configured_or_given_draft_is_not_trained() -> None:
    threshold, exit_layer = (
        read_experiment(installed(), "threshold", "joey"),
        read_experiment(installed(), "exit_layer", "joey"),
    )
    cell = make_cell(installed(), threshold, Arguments("threshold", "joey", Path("x"), [], []), next(threshold.cells()))
    assert cell.train is None and cell.output is None and cell.run.method["gamma"] == 4
    given = Arguments("exit_layer", "joey", Path("x"), ["method.checkpoint=somewhere"], [])
    assert make_cell(installed(), exit_layer, given, next(exit_layer.cells())).train is None


@pytest.mark.parametrize(
    ("name", "model"), [*((name, "joey") for name in installed().choices("experiment")), ("exit_layer", "vicuna-13b")]
)
def test_every_experiment_composes(name: str, model: str) -> None:
    chosen = read_experiment(installed(), name, model)
    firsts = [{key: values[0] for key, values in grid.items()} for grid in chosen.grids]
    cells = [*firsts, list(chosen.cells())[-1]]
    settings = [f"{key}={json.dumps(value)}" for key, value in chosen.settings.items()]
    training = [f"{key}={json.dumps(value)}" for key, value in chosen.training.items()]
    for cell in cells:
        own = [f"model={model}", *(f"{key}={json.dumps(value)}" for key, value in cell.items())]
        installed().compose("config", [*own, *settings])
        if cell["method"] in installed().choices("train"):
            installed().compose("train", [*own, *training, "output=x"])


def test_what_an_experiment_takes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["method=kangaroo", "model=joey", "limit=2", "repeats=100", "max_new_tokens=1024"]
    cell = Run.of(installed().compose("config", overrides))
    download, time = outlook([cell, cell])
    assert download == "to download: nothing"
    size, turns = hollow(cell.model, target_folder(cell.model)).step_bytes, 14
    minutes = round(2 * turns * 300 * 100 * 2 * size / 2e10 / 60)
    assert time.startswith(
        f"to measure: about {minutes} minutes, if a token takes as long as reading the weights at 20"
    )
    monkeypatch.setattr("bench.outlook.pending_bytes", lambda path, revision: None if "gdrive" in path else 7 * 10**9)
    inside = ["method=sam", "method.fallback=kangaroo", "method.fallback.checkpoint=a/b", "model=joey"]
    others = [replace(cell, method={**cell.method, "checkpoint": "gdrive:abc/def"})]
    others += [Run.of(installed().compose("config", inside))]
    assert next(outlook(others)) == "to download: 14.0 GB from the hub; of unknown size: gdrive:abc/def"


def test_the_text_of_a_datastore_is_counted_until_it_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.outlook.pending_bytes", lambda path, revision: 0)
    cell = Run.of(installed().compose("config", ["method=rest", "model=joey", "limit=1"]))
    text = {"_target_": "bench.train.rest.prepare", "text": "house/talks/all.json", "revision": COMMIT, "sha256": None}
    vicuna = replace(cell, method={**cell.method, "datastore": text})
    sizes = {"all.json": 672_000_000, "other.json": 1}
    monkeypatch.setattr(Source, "_sizes", lambda source, dataset: sizes if dataset == "house/talks" else {})
    assert next(outlook([vicuna, vicuna])) == "to download: 0.7 GB from the hub"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "here")
    assert next(outlook([vicuna])) == "to download: nothing"
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Source("https://house/talks.json", None, None, "method", "text").pending_bytes() is None
    assert Source(str(tmp_path), None, None, "method", "text").pending_bytes() == 0


def test_the_threshold_grid_is_the_papers() -> None:
    raw = yaml.safe_load((CONF / "experiment" / "threshold.yaml").read_text())
    assert raw["grids"][0]["method.gamma"] == [4, 6, 8]
    assert {0, 0.3, 0.5, 0.7, 0.9} <= set(raw["grids"][0]["method.eta"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name is missing; valid: adapter, exit_layer, figure1, table1, threshold"),
        (["name=treshold"], "name=treshold: unknown; did you mean threshold?"),
        (["name=threshold", "again"], "again: expected key=value"),
        (["name=exit_layer", "method=medusa"], "name=exit_layer: no cell of its grid is left by these settings"),
        (["name=threshold", "method.gamma=abc"], "method.gamma=abc: must be an integer"),
        (["name=adapter", "method.variant=foo"], "train.variant=foo: unknown; valid: kangaroo, kangaroo_head"),
        (["name=threshold", "model=vicuna-7"], "model=vicuna-7: unknown; did you mean vicuna-7b?"),
        (["name=threshold", *ONE_CELL, "limits=3"], "limits: unknown override; did you mean limit?"),
        (["name=threshold", *ONE_CELL, "model=qwen3-8b"], "training.data.path is missing: model=qwen3-8b has no draft"),
        (["name=table1", "model=qwen3-8b"], "medusa, rest, kangaroo: training.data.path is missing"),
        (
            ["name=threshold", *ONE_CELL, "model=qwen3-8b", "training.loop.epoch=1"],
            "loop.epoch: unknown override; did you",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_training_text_that_changes_begins_a_new_draft(tmp_path: Path) -> None:
    text = tmp_path / "data.json"
    names = set()
    for content in ("[1]", "[1, 2]", "[1]"):
        text.write_text(content)
        overrides = ["method=kangaroo", "model=joey", f"data.path={text}", "output=anywhere"]
        names.add(experiment.training_hash(compose(installed(), overrides)))
    assert len(names) == 2


def test_whatever_a_training_reads_begins_a_new_draft_when_it_changes(common: list[str], tmp_path: Path) -> None:
    chat, start = tmp_path / "chat.jinja", tmp_path / "start"
    chat.write_text("{{ messages }}")
    overrides = [*common, "name=exit_layer", f"model.chat_template={chat}", f"results_dir={tmp_path / 'none'}"]

    def name(*more: str) -> str | None:
        experiment._target_files.cache_clear()  # as in another process
        arguments = Arguments.parse(installed(), [*overrides, *more])
        found, others = read_experiment(installed(), "exit_layer", "custom").narrowed(arguments.run)
        cell = make_cell(installed(), found, replace(arguments, run=others), {**next(found.cells())})
        return cell.output and cell.output.name

    first = name()
    assert first == name()
    chat.write_text("{{ messages[0] }}")
    second = name()
    assert second != first
    start.mkdir()
    (start / "pytorch_model.bin").write_bytes(b"1")
    third = name(f"training.train.start_from={start}")
    (start / "pytorch_model.bin").write_bytes(b"2")
    assert len({first, second, third, name(f"training.train.start_from={start}")}) == 4


def test_help_names_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["--help"]) == 0
    assert "exit_layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: mine\nmakes: []\ngrids: [{method: [pld]}]\n", "draft is missing"),
        ("", "about is missing"),
        ("[1, 2]\n", "conf/experiment/mine.yaml: "),
        ("about: [\n", "conf/experiment/mine.yaml: "),
        ("about: mine\nmakes: []\ndraft: own\ngrids: [{method: [pld]}]\n", "draft=own: unknown; "),
        ("about: mine\nmakes: []\ndraft: trained\ngrids: [{seed: [1]}]\n", "each needs method, and a list"),
        ("about: mine\nmakes: []\ndraft: trained\ngrids: [{method: pld}]\n", "each needs method, and a list"),
        (
            "about: mine\nmakes: []\ndraft: trained\nmodels: {joey: 3}\ngrids: [{method: [pld]}]\n",
            "conf/experiment/mine.yaml: ",
        ),
    ],
    ids=str,
)
def test_an_experiment_of_ones_own_is_checked(tmp_path: Path, capsys, text: str, message: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    given = [f"--config-dir={tmp_path}", f"results_dir={tmp_path / 'results'}"]
    assert experiment.main([*given, "name=mine", "model=joey"]) == 2
    error = capsys.readouterr().err
    assert "conf/experiment/mine.yaml" in error and message in error and error.count("\n") == 1
    assert experiment.main([*given, "model=joey"]) == 2
    assert "mine" in capsys.readouterr().err.partition("valid: ")[2]


def test_a_cell_alone_is_measured_and_what_it_does_not_make_is_said(tmp_path: Path, capsys) -> None:
    short = ["limit=1", "repeats=1", "max_new_tokens=8", "warmup_turns=0", f"results_dir={tmp_path}"]
    assert experiment.main(["name=threshold", "model=joey", *ONE_CELL, *short]) == 1
    assert "threshold: the runs do not make figure_threshold.png; see" in capsys.readouterr().err
    assert (tmp_path / "threshold" / "index.html").is_file()
