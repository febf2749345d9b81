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
from typing import Any

from methods.errors import UserError, nearest

USAGE = """usage: python -m bench.experiment name=NAME [model=NAME] [key=value ...] [training.key=value ...]
names:   {names}
models:  {models}
results_dir=FOLDER       cells, checkpoints and the report of each experiment ({results})
key=value                for every cell, as for bench.run; key=a,b for a key of the grid replaces its values there
training.key=value       for every training, as for bench.train (training.data.path=sharegpt.json)"""
RESULTS = "results/experiments"
SPEC_KEYS = ("about", "makes", "draft", "grids", "settings", "training", "models")
DRAFTS = ("configured", "trained")
COMPLETE = ("training.json", "rest.safetensors")  # written last
DRAFT_KEYS = ("checkpoint", "datastore")  # where a method's configuration says what its draft is made of


@dataclass(frozen=True)
class Experiment:
    """One file of conf/experiment, for one model."""

    about: str
    makes: tuple[str, ...]  # files of the report that show the result
    draft: (
        str  # configured: the model's own drafts, trained where it has none | trained: one for each cell that differs
    )
    grids: tuple[Mapping[str, list[Any]], ...]  # override -> values; a grid's cells are all combinations
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

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


def read_experiment(name: str, model: str) -> Experiment:
    """conf/experiment/<name>.yaml with what it changes for the model. Raises UserError for an unknown name."""
    import yaml

    from bench.config import CONF, choices

    valid = choices("experiment")
    if name not in valid:
        raise UserError(f"name={name}: unknown; {nearest(name, valid)}")
    raw = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    own = (raw.get("models") or {}).get(model, {})
    for key in (*raw, *own):
        if key not in SPEC_KEYS:
            raise UserError(f"conf/experiment/{name}.yaml: {key} is unknown; {nearest(key, SPEC_KEYS)}")
    if raw["draft"] not in DRAFTS:
        raise UserError(f"conf/experiment/{name}.yaml: draft={raw['draft']} is unknown; valid: {', '.join(DRAFTS)}")
    merged = {key: {**(raw.get(key) or {}), **own.get(key, {})} for key in ("settings", "training")}
    grids = tuple(own.get("grids", raw["grids"]))
    return Experiment(raw["about"], tuple(raw["makes"]), raw["draft"], grids, **merged)


@dataclass(frozen=True)
class Arguments:
    """The command line, taken apart."""

    name: str
    model: str
    results_dir: Path
    run: list[str]  # overrides of bench.run
    train: list[str]  # overrides of bench.train

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Arguments:
        """Raises UserError for an argument that is no key=value, and when there is no name."""
        from bench.config import choices

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
            raise UserError(f"name is missing; valid: {', '.join(choices('experiment'))}")
        return cls(own["name"], own["model"], Path(own["results_dir"]), run, train)


@dataclass(frozen=True)
class Cell:
    """One measurement, and the training it needs first."""

    run: list[str]  # overrides of bench.run
    train: list[str] | None  # overrides of bench.train; None: nothing to train
    output: Path | None  # where the training puts the draft

    @property
    def trained(self) -> bool:
        return self.output is None or any((self.output / name).exists() for name in COMPLETE)


def main(arguments: Sequence[str]) -> int:
    """Do what is left of an experiment. Returns 0; 1 when not all turns were lossless; 2 for bad input; 130 stopped."""
    from bench.config import choices

    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(names=", ".join(choices("experiment")), models=", ".join(choices("model")), results=RESULTS))
        return 0
    try:
        parsed = Arguments.parse(arguments)
        experiment, others = read_experiment(parsed.name, parsed.model).narrowed(parsed.run)
        return perform(experiment, replace(parsed, run=others))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def perform(experiment: Experiment, arguments: Arguments) -> int:
    """Train, measure and report what is not yet there."""
    cells = [make_cell(experiment, arguments, overrides) for overrides in experiment.cells()]
    if not cells:
        raise UserError(f"name={arguments.name}: no cell of its grid is left by these settings")
    check_cells(cells)
    trainings = {cell.output: cell for cell in cells if cell.output}
    print(f"{arguments.name}: {experiment.about}: {len(trainings)} drafts to train, {len(cells)} cells to measure")
    for number, cell in enumerate(trainings.values(), 1):
        print(f"\ndraft {number} of {len(trainings)}: {_command('train', cell.train or [])}", flush=True)
        if status := _train(cell):
            return status
    worst = 0
    for number, cell in enumerate(cells, 1):
        print(f"\ncell {number} of {len(cells)}: {_command('run', cell.run)}", flush=True)
        status = _run(cell)
        if status > 1:
            return status
        worst = max(worst, status)
    report(experiment, arguments, cells)
    return worst


def check_cells(cells: Sequence[Cell]) -> None:
    """Compose every cell, so that a mistake in the last one shows before the first training."""
    from bench.config import check_settings, compose_config, plain
    from methods.adapters import check_variant

    for cell in cells:
        method = plain(compose_config("config", cell.run))["method"]
        check_settings(method, "method")
        if "variant" in method:
            check_variant(method["variant"])


def make_cell(experiment: Experiment, arguments: Arguments, cell: Mapping[str, Any]) -> Cell:
    """The commands of one cell. Raises UserError for overrides that do not compose, and for missing training text."""
    name, where = f"method={cell['method']}", f"results_dir={arguments.results_dir}"
    head, own = f"model={arguments.model}", [*_written(experiment.settings), *arguments.run]
    grid = _written({key: value for key, value in cell.items() if key != "method"})
    run = [name, head, *grid, *own, where]
    method = _method_settings((name, head, *own, where))
    key = next((key for key in DRAFT_KEYS if key in method), None)
    given = any(override.startswith(f"method.{key}=") for override in arguments.run)
    if key is None or given or (experiment.draft == "configured" and method[key] is not None):
        return Cell(run, None, None)
    read = _read_by_training(cell["method"])
    of_both = [text for text in (*grid, *own) if text.partition("=")[0] in read or text.startswith("model.")]
    train = [name, head, *of_both, *_written(experiment.training), *arguments.train]
    # Folders are named by hash, so that a setting of the training that changes begins a new one.
    folder = f"{cell['method']}-{training_hash(tuple(train))}"
    output = arguments.results_dir / "checkpoints" / arguments.model / folder
    return Cell([*run, f"method.{key}={output}"], [*train, f"output={output}"], output)


@cache
def _method_settings(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The method's configuration, without what the grid changes in it: composing takes a while."""
    from bench.config import compose_config, plain

    return dict(plain(compose_config("config", overrides))["method"])


@cache
def _read_by_training(method: str) -> set[str]:
    """The method's keys that its training refers to: two cells that agree in them share a draft."""
    from bench.config import CONF

    return set(re.findall(r"\$\{(method\.\w+)\}", (CONF / "train" / f"{method}.yaml").read_text(encoding="utf-8")))


@cache
def training_hash(overrides: tuple[str, ...]) -> str:
    """Ten hexadecimal digits that name what is trained, for which weights and on what."""
    import hashlib

    from bench.config import compose_config, plain

    node = plain(compose_config("train", [*overrides, "output=anywhere"]))["train"]
    for key in ("output", "resume"):
        node.pop(key, None)
    if not node["data"]["path"]:
        raise UserError(
            f"training.data.path is missing: model={node['model']['name']} has no draft for this method; give a "
            "ShareGPT JSON or JSONL file to train it on"
        )
    facts = [node, _weights(node["model"]["path"], node["model"]["revision"]), *_content(Path(node["data"]["path"]))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def _content(text: Path) -> list[str]:
    """Hash of a training text that is a file; the built-in one follows from its settings."""
    from bench.digests import sha256

    return [sha256(text)] if text.is_file() else []


@cache
def _weights(path: str, revision: str | None) -> dict[str, str]:
    from bench.config import locate
    from bench.digests import sha256
    from methods.engine.checkpoint import file_hashes, resolve

    return file_hashes(resolve(locate(path), revision), sha256)


def _written(settings: Mapping[str, Any]) -> list[str]:
    """key=value as on the command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _command(module: str, overrides: Sequence[str]) -> str:
    return shlex.join(["python", "-m", f"bench.{module}", *overrides])


def _train(cell: Cell) -> int:
    from bench.train.__main__ import main as train

    assert cell.train is not None
    if cell.trained:
        print(f"{cell.output} is complete")
        return 0
    return train(cell.train)


def _run(cell: Cell) -> int:
    from bench.run import main as run

    return run(cell.run)


def run_folder(cell: Cell) -> Path:
    """Where bench.run put the cell: the newest folder of its configuration."""
    from bench.config import compose_config, plain
    from bench.records import config_hash, read_info

    config = plain(compose_config("config", cell.run))
    config["method_name"] = next(text.partition("=")[2] for text in cell.run if text.startswith("method="))
    parent = Path(config["results_dir"]) / "runs" / config["model"]["name"] / config["method_name"]
    found = [
        (info["started"], folder) for folder in parent.glob(f"{config_hash(config)}*") if (info := read_info(folder))
    ]
    return max(found)[1]


def report(experiment: Experiment, arguments: Arguments, cells: Sequence[Cell]) -> None:
    """Tables and figures of exactly these cells, and a short table on the screen."""
    from bench.records.frame import read_run
    from bench.report.collect import group_runs
    from bench.report.command import write_collection

    out = arguments.results_dir / arguments.name
    collection = group_runs([read_run(folder) for folder in dict.fromkeys(map(run_folder, cells))])
    written = write_collection(collection, out)
    rows = [row for group in collection.groups for row in summary(group.entries, experiment)]
    print("\n" + _aligned(rows))
    shown = [path for path in written if path.name in experiment.makes]
    print("\n".join(str(path) for path in (*shown, out / "index.html")))
    lacking = [name for name in experiment.makes if name not in {path.name for path in shown}]
    if lacking:
        raise UserError(f"{arguments.name}: the runs do not make {', '.join(lacking)}; see {out / 'index.html'}")


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


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
