"""The command line of `python -m bench.report`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import again, command
from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.report.collect import Collection

USAGE = """usage: python -m bench.report [results_dir=results] [output=results/report]
       python -m bench.report import=FILE... [baseline=FILE...] [model=NAME] [method=NAME]
       python -m bench.report --compare RUN_A RUN_B

Reads every run below results_dir/runs and every pair of servers below results_dir/serve, and writes one page
(index.html), tables, figures and records.parquet.

  results_dir=FOLDER   what bench.run wrote (results)
  output=FOLDER        where the report goes (results_dir/report)
  import=FILE...       answer files of Spec-Bench or of the authors' Kangaroo, read as runs; several files with one
                       model_id are repeats. Results of vllm bench serve (one for each max_concurrency), of
                       SpecForge, or a folder of SPEED-Bench's specdec_bench: read as servers under load
  baseline=FILE...     the plain decoding's answer files for the imported ones, one for all or one for each
  model=, method=      names for imported runs, where model_id does not tell them
  --compare A B        two run directories, paired by question
"""
MADE = ".made.json"  # the files of a report, with their digests
LISTS = ("import", "baseline")
FOLDERS = ("results_dir", "output")  # a shell leaves the ~ of KEY=~/place as it is
DEFAULTS = {"results_dir": "results", "output": "", "model": "", "method": ""}


@dataclass
class Settings:
    """The command line, taken apart."""

    values: dict[str, str] = field(default_factory=lambda: dict(DEFAULTS))
    lists: dict[str, list[Path]] = field(default_factory=lambda: {key: [] for key in LISTS})
    compare: list[Path] = field(default_factory=list)


def parse(arguments: Sequence[str]) -> Settings:
    """key=value arguments; further files may follow import= and baseline=. Raises UserError for anything else."""
    settings = Settings()
    if arguments and arguments[0] == "--compare":
        settings.compare = [Path(argument) for argument in arguments[1:]]
        if len(settings.compare) != 2:
            raise UserError(f"--compare takes two run directories, not {len(settings.compare)}")
        return settings
    if "--compare" in arguments:
        raise UserError("--compare stands first and alone: python -m bench.report --compare RUN_A RUN_B")
    current = ""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and current:
            settings.lists[current].append(Path(argument).expanduser())
            continue
        valid = {*DEFAULTS, *LISTS}
        if key not in valid:
            raise UserError(f"{argument}: unknown argument; {nearest(key, {*valid, '--compare'})}")
        if not value:
            raise UserError(f"{argument}: expected {key}=VALUE")
        current = key if key in LISTS else ""
        if current:
            settings.lists[key] += [Path(part).expanduser() for part in value.split(",")]
        else:
            settings.values[key] = os.path.expanduser(value) if key in FOLDERS else value
    for path in (path for listed in settings.lists.values() for path in listed):
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise UserError(f"{path}: neither a file nor a folder")
    if settings.lists["baseline"] and not settings.lists["import"]:
        raise UserError("baseline= goes with import=: give the answer files whose baseline this is")
    return settings


@command(again)
def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 2 a user's mistake, said in one line."""
    if {"-h", "--help", "help"} & set(arguments):
        print(USAGE)
        return 0
    settings = parse(arguments)
    if settings.compare:
        from bench.records.frame import read_run
        from bench.report.compare import format_comparison

        print(format_comparison(*map(read_run, settings.compare)))
        return 0
    for path in write_report(settings):
        print(path)
    return 0


def write_report(settings: Settings) -> list[Path]:
    """All files of the report; returns their paths. Raises UserError before anything is written."""
    from bench.report.collect import collect
    from bench.report.importer import import_runs
    from bench.serve.imported import import_comparisons

    values, results = settings.values, Path(settings.values["results_dir"])
    (loads, answers), (plain, baseline) = (_apart(settings.lists[key]) for key in LISTS)
    imported = import_runs(answers, baseline, model=values["model"], method=values["method"])
    servers = import_comparisons(loads, plain, model=values["model"], name=values["method"])
    if not results.is_dir() and not imported and not servers:
        raise UserError(f"results_dir={results}: no such folder; give the folder that bench.run wrote to")
    return write_collection(collect(results, imported, servers), Path(values["output"] or results / "report"))


def _apart(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Results of other programs that measure servers, and files of answers."""
    from bench.serve.imported import is_result

    kinds = [is_result(path) for path in files]
    results = [path for path, result in zip(files, kinds, strict=True) if result]
    return results, [path for path, result in zip(files, kinds, strict=True) if not result]


def write_collection(collection: Collection, out: Path) -> list[Path]:
    """Page, tables, figures and records of a collection; returns their paths. Raises UserError for a bad `out`."""
    from bench.files import make_folder
    from bench.report.figures import write_figures
    from bench.report.frames import write_records
    from bench.report.page import write_page
    from bench.report.servers import write_servers
    from bench.report.tables import write_tables

    make_folder(str(out), "output")
    for text in collection.warnings:
        print(text, file=sys.stderr)
    written = [write_page(collection, out), *write_servers(collection.servers, out)]
    if collection.groups:
        written += write_tables(collection, out)
    written += write_figures(collection, out)
    written += [write_records(collection, out)] if collection.groups else []
    _forget(out, written)
    return written


def _forget(out: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report in this folder made and this one does not, such as a figure of runs that are gone.

    It knows by a list of its own; what others have put or changed there stays.
    """
    from bench.files import replace_text
    from methods.digest import file_sha256

    made = {path.name: file_sha256(path) for path in written}
    before: Any = {}
    with suppress(OSError, ValueError, RecursionError):
        before = json.loads((out / MADE).read_text(encoding="utf-8"))
    for name, digest in before.items() if isinstance(before, dict) else ():
        file = out / name
        if name in made or name != file.name:
            continue
        try:
            if file.is_file() and not file.is_symlink() and file_sha256(file) == digest:
                file.unlink()
        except OSError:
            made[name] = digest  # another report may be allowed to
    replace_text(out / MADE, json.dumps(made, indent=1, sort_keys=True), "output")
