"""The command line of `python -m bench.report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from methods.errors import UserError, nearest

USAGE = """usage: python -m bench.report [results_dir=results] [output=results/report]

Reads every run below results_dir/runs and writes tables and figures to results_dir/report.

  results_dir=FOLDER   what bench.run wrote (results)
  output=FOLDER        where the report goes (results_dir/report)
"""
DEFAULTS = {"results_dir": "results", "output": ""}


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """key=value arguments. Raises UserError for an unknown key."""
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in DEFAULTS:
            raise UserError(f"{argument}: unknown argument; {nearest(key, DEFAULTS)}")
        if not equals or not value:
            raise UserError(f"{argument}: expected {key}=VALUE")
        settings[key] = value
    return settings


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 2 a user's mistake, said in one line."""
    if {"-h", "--help", "help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        settings = parse(arguments)
        results = Path(settings["results_dir"])
        if not results.is_dir():
            raise UserError(f"results_dir={results}: no such folder; give the folder that bench.run wrote to")
        for path in write_report(results, Path(settings["output"] or results / "report")):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write_report(results: Path, out: Path) -> list[Path]:
    """All files of the report below `out`; returns their paths."""
    from bench.report.collect import collect
    from bench.report.figures import write_figures
    from bench.report.tables import write_tables

    collection = collect(results)
    out.mkdir(parents=True, exist_ok=True)
    return write_tables(collection, out) + write_figures(collection, out)
