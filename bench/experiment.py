"""python -m bench.experiment name=threshold model=joey

One of the paper's experiments from conf/experiment: trains the drafts it lacks, measures every cell of its grid, and
makes the table or figure. What is finished is neither trained nor measured again: the same command goes on.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.command import configured, goes_on
from methods.digest import sha256
from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.config import Conf
    from bench.settings import Run, Train

USAGE = """usage: python -m bench.experiment name=NAME [model=NAME] [key=value ...] [training.key=value ...]
names:   {experiment}
models:  {model}
results_dir=FOLDER       cells, checkpoints and the report of each experiment (results/experiments)
key=value                for every cell, as for bench.run; key=a,b for a key of the grid replaces its values there
training.key=value       for every training, as for bench.train (training.data.path=sharegpt.json)"""
RESULTS = "results/experiments"
COMPLETE = ("training.json", "rest.safetensors")  # written last


@dataclass(frozen=True)
class Experiment:
    """One file of conf/experiment, for one model."""

    about: str
    makes: tuple[str, ...]  # files of the report that show the result
    draft: Literal["configured", "trained"]  # the model's own, or trained where it has none; one for each cell
    grids: tuple[dict[str, Any], ...]  # override -> values; a grid's cells are all combinations
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)  # what of this is otherwise for a model

    def __post_init__(self) -> None:
        for grid in self.grids:
            if "method" not in grid or not all(isinstance(values, list) for values in grid.values()):
                raise UserError(f"grids: {json.dumps(grid)}: each needs method, and a list of values for every key")

    def cells(self) -> Iterator[dict[str, Any]]:
        """Overrides of each cell."""
        for grid in self.grids:
            for values in itertools.product(*grid.values()):
                yield dict(zip(grid, values, strict=True))

    def narrowed(self, overrides: Sequence[str]) -> tuple[Experiment, list[str]]:
        """With the values that overrides give for keys of the grid (method.gamma=4,6), and the other overrides."""
        grids, others = [dict(grid) for grid in self.grids], []
        for override in overrides:
            key, _, value = override.partition("=")
            touched = [grid for grid in grids if key in grid]
            for grid in touched:
                listed = value.split(",")
                grid[key] = [name for name in grid[key] if name in listed] if key == "method" else listed
            others += [] if touched else [override]
        return replace(self, grids=tuple(grid for grid in grids if all(grid.values()))), others


def read_experiment(conf: Conf, name: str, model: str) -> Experiment:
    """conf/experiment/<name>.yaml with what it changes for the model. Raises UserError for an unknown name."""
    import yaml

    from bench.types import settings_of

    file = conf.file("experiment", name)
    if file is None:
        raise UserError(f"name={name}: unknown; {nearest(name, conf.choices('experiment'))}")
    try:
        read = settings_of(Experiment, yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        own = read.models.get(model, {})
        merged = {key: {**getattr(read, key), **own.get(key, {})} for key in ("settings", "training")}
        return settings_of(Experiment, {**vars(read), **own, **merged})
    except (UserError, yaml.YAMLError, AttributeError, TypeError) as error:  # a list where keys are wanted
        raise UserError(f"conf/experiment/{name}.yaml: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Arguments:
    """The command line, taken apart."""

    name: str
    model: str
    results_dir: Path
    run: list[str]  # overrides of bench.run
    train: list[str]  # overrides of bench.train

    @classmethod
    def parse(cls, conf: Conf, arguments: Sequence[str]) -> Arguments:
        """Raises UserError for an argument that is no key=value, and when there is no name."""
        own = {"name": "", "model": "joey", "results_dir": RESULTS}
        run: list[str] = []
        train: list[str] = []
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals:
                raise UserError(f"{argument}: expected key=value")
            if key in own:
                own[key] = value
            elif key.startswith("training."):
                train.append(argument.removeprefix("training."))
            else:
                run.append(argument)
        if not own["name"]:
            raise UserError(f"name is missing; valid: {', '.join(conf.choices('experiment'))}")
        return cls(own["name"], own["model"], Path(own["results_dir"]), run, train)


@dataclass(frozen=True)
class Cell:
    """One measurement, and the training it needs first."""

    run: Run
    written: list[str]  # the same as overrides of bench.run, for the screen and the record
    train: Train | None  # None: nothing to train
    output: Path | None  # where the training puts the draft

    @property
    def trained(self) -> bool:
        return self.output is None or any((self.output / name).exists() for name in COMPLETE)


@configured(goes_on, USAGE)
def main(conf: Conf, left: list[str]) -> int:
    """Do what is left of an experiment. Returns 0; 1 when not all turns were lossless; 2 for bad input; 130 stopped."""
    parsed = Arguments.parse(conf, left)
    experiment, others = read_experiment(conf, parsed.name, parsed.model).narrowed(parsed.run)
    return perform(conf, experiment, replace(parsed, run=others))


def perform(conf: Conf, experiment: Experiment, arguments: Arguments) -> int:
    """Train, measure and report what is not yet there."""
    from bench.binder import bind
    from bench.outlook import outlook
    from bench.session import run
    from bench.train.work import train

    cells, lacking = list[Cell](), dict[str, list[str]]()  # what is wrong: with which methods
    for overrides in experiment.cells():
        try:
            cell = make_cell(conf, experiment, arguments, overrides)
            bind(cell.run.method, "method", model=cell.run.model.name)
            if all(cell.run != other.run for other in cells):
                cells.append(cell)
        except UserError as error:
            lacking.setdefault(str(error), []).append(overrides["method"])
    if lacking:
        raise UserError("; ".join(f"{', '.join(dict.fromkeys(who))}: {why}" for why, who in lacking.items()))
    if not cells:
        raise UserError(f"name={arguments.name}: no cell of its grid is left by these settings")
    _check_questions(experiment, cells)
    trainings = {cell.output: cell for cell in cells if cell.output}
    print(f"{arguments.name}: {experiment.about}: {len(trainings)} drafts to train, {len(cells)} cells to measure")
    for line in outlook([cell.run for cell in cells]):
        print(line, flush=True)
    for number, cell in enumerate(trainings.values(), 1):
        print(f"\ndraft {number} of {len(trainings)}: {cell.output}", flush=True)
        if cell.trained:
            print("it is complete")
        elif cell.train is not None:
            train(cell.train)
    worst, folders = 0, []
    for number, cell in enumerate(cells, 1):
        line = shlex.join(["python", "-m", "bench.run", *cell.written])
        print(f"\ncell {number} of {len(cells)}: {line}", flush=True)
        outcome = run(cell.run, line)
        worst = max(worst, outcome.status)
        folders.append(outcome.folder)
    return max(worst, report(experiment, arguments, folders))


def _check_questions(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raises UserError for a file of other questions than the paper's where its tables are to be made."""
    from bench.digests import sha256 as file_sha256
    from bench.questions.sets import find

    tables = [name for name in experiment.makes if name.startswith("table")]
    for run in (cell.run for cell in cells if tables and cell.run.data.path is not None):
        if (digest := file_sha256(find(run.questions, run.data.path))) != run.questions.sha256:
            raise UserError(
                f"data.path={run.data.path}: is not the file of questions={run.questions.name}, so {tables[0]} would "
                f"leave these runs out; questions.sha256={digest} says that it is"
            )


def make_cell(conf: Conf, experiment: Experiment, arguments: Arguments, cell: Mapping[str, Any]) -> Cell:
    """The settings of one cell. Raises UserError for what does not compose or fit, and for missing training text.

    Everything is checked here, so that a mistake in the last cell shows before the first training.
    """
    from bench.binder import draft_key
    from bench.settings import Run
    from bench.train.work import compose, fitting

    name, head = f"method={cell['method']}", f"model={arguments.model}"
    grid = _written({key: value for key, value in cell.items() if key != "method"})
    own = [*_written(experiment.settings), *arguments.run]
    written = [name, head, *grid, *own, f"results_dir={arguments.results_dir}"]
    settings = Run.of(conf.compose("config", written))
    key = draft_key(settings.method)
    if key is None or any(override.startswith(f"method.{key}=") for override in arguments.run):
        return Cell(settings, written, None, None)
    if experiment.draft == "configured" and settings.method[key] is not None:
        return Cell(settings, written, None, None)
    read = _read_by_training(conf, cell["method"])
    of_both = [text for text in (*grid, *own) if text.partition("=")[0] in read or text.startswith("model.")]
    train = compose(conf, [name, head, *of_both, *_written(experiment.training), *arguments.train, "output=anywhere"])
    fitting(train)
    # Folders are named by hash, so that a setting of the training that changes begins a new one.
    output = arguments.results_dir / "checkpoints" / arguments.model / f"{cell['method']}-{training_hash(train)}"
    settings = replace(settings, method={**settings.method, key: str(output)})
    written.append(f"method.{key}={output}")
    train = replace(train, output=str(output), train={**train.train, "output": str(output)})
    return Cell(settings, written, train, output)


@cache
def _read_by_training(conf: Conf, method: str) -> set[str]:
    """The method's keys that its training refers to: two cells that agree in them share a draft."""
    file = conf.file("train", method)
    if file is None:
        raise UserError(f"method={method}: there is nothing to train; valid: {', '.join(conf.choices('train'))}")
    return set(re.findall(r"\$\{(method\.\w+)\}", file.read_text(encoding="utf-8")))


def training_hash(settings: Train) -> str:
    """Ten hexadecimal digits that name what is trained, for which weights, from which and on what."""
    from bench.binder import file_hashes
    from bench.digests import sha256 as file_sha256
    from bench.train.work import fitting

    text, model = settings.data.path, settings.model
    if not text:
        raise UserError(
            f"training.data.path is missing: model={model.name} has no draft for this method; give a "
            "ShareGPT JSON or JSONL file to train it on"
        )
    node = {key: value for key, value in settings.train.items() if key not in ("output", "resume")}
    # Of a text that is a file its content counts; the built-in one follows from its settings.
    content = [file_sha256(Path(text))] if Path(text).is_file() else []
    begins = {key: file_hashes(path, draft=True) for key, path in fitting(settings).fetch(model=model).files()}
    facts = [node, _target_files(model.path, model.revision, model.chat_template), begins, *content]
    return sha256(json.dumps(facts, sort_keys=True))[:10]


@cache
def _target_files(path: str, revision: str | None, template: str | None) -> dict[str, str]:
    """What of the target is read by a training: weights, tokenizer and chat template."""
    from bench.binder import file_hashes
    from bench.chat import chat_files
    from bench.digests import sha256 as file_sha256
    from bench.places import locate
    from methods.engine.hub import resolve

    folder = resolve(locate(path), revision)
    return {**file_hashes(folder), **{file.name: file_sha256(file) for file in chat_files(folder, template)}}


def _written(settings: Mapping[str, Any]) -> list[str]:
    """key=value as on the command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def report(experiment: Experiment, arguments: Arguments, folders: Sequence[Path]) -> int:
    """Tables and figures of exactly these cells, and a table on the screen. Returns 1 where one cannot be made."""
    from bench.records.frame import read_run
    from bench.report.collect import group_runs
    from bench.report.command import write_collection
    from bench.words import aligned

    out = arguments.results_dir / arguments.name
    collection = group_runs([read_run(folder) for folder in dict.fromkeys(folders)])
    written = write_collection(collection, out)
    rows = [row for group in collection.groups for row in summary(group.entries, experiment)]
    print("", *aligned(rows, left=len(rows[0])), sep="\n")
    shown = [path for path in written if path.name in experiment.makes]
    print("\n".join(str(path) for path in (*shown, out / "index.html")))
    lacking = [name for name in experiment.makes if name not in {path.name for path in shown}]
    if lacking:
        print(f"{arguments.name}: the runs do not make {', '.join(lacking)}; see {out / 'index.html'}", file=sys.stderr)
    return int(bool(lacking))


def summary(entries: Sequence[Any], experiment: Experiment) -> list[list[str]]:
    """A header, then for each entry the settings that the grid varies, CR and speedup with its interval."""
    from bench.records.identity import flatten
    from bench.words import show, show_interval

    keys = list(dict.fromkeys(key for grid in experiment.grids for key in grid if key != "method"))
    rows = [["method", *(key.rpartition(".")[2] for key in keys), "CR", "speedup [95 %]", "extra parameters"]]
    for entry in entries:
        settings, overall = flatten(entry.run.config), entry.metrics["overall"]
        chosen = ["" if settings.get(key) is None else str(settings[key]) for key in keys]
        extra = entry.metrics["extra_parameters"]
        rows.append([entry.run.method, *chosen, show(overall["cr"]), show_interval(overall), f"{extra or 0:,}"])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
