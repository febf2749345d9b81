"""python -m bench.run method=kangaroo model=joey task=all

Measures a method against vanilla decoding, turn by turn, and writes a run directory under results/runs.
method=a,b and method=all run several, one after another, and -m every point of other sweeps; launcher=slurm hands them
to a cluster.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.command import configured, goes_on

if TYPE_CHECKING:
    from bench.config import Composed, Conf

SWEEP = ("-m", "--multirun")
USAGE = """usage: python -m bench.run [method=NAME[,NAME...]|all] [model=NAME] [task=NAME] [key=value ...]
       python -m bench.run -m key=value,value ...       a sweep: every combination; launcher=slurm: on a cluster
       --config-dir FOLDER                              methods and models of your own, laid out like conf/
method=all: {all}; transformers' own generate (hf_...) only when named
methods: {method}
models:  {model}
questions: {questions}; or data.path=FILE
tasks:   all, mt_bench, translation, summarization, qa, math_reasoning, rag; of your own questions, their categories
keys and their defaults: conf/config.yaml, conf/method/NAME.yaml, conf/model/NAME.yaml, conf/questions/NAME.yaml"""


def advice(arguments: Sequence[str]) -> str:
    """What follows "interrupted; "."""
    slurm = "jobs that were submitted go on; squeue lists them"
    return slurm if any(text.startswith("launcher=") for text in arguments) else goes_on(arguments)


@configured(advice, USAGE, all=lambda conf: all_methods(conf))
def main(conf: Conf, overrides: list[str]) -> int:
    """Run what the command line asks for. Returns the exit status: 0 done, 1 some turn or method failed, 2 input."""
    from bench.config import FOLDER_OPTION
    from bench.settings import Run
    from bench.slurm import Slurm, submit
    from bench.types import settings_of
    from methods.errors import UserError, nearest

    sweep = bool(set(SWEEP) & set(overrides))
    overrides = [override for override in overrides if override not in SWEEP]
    for option in (override for override in overrides if override.startswith("-")):
        raise UserError(f"{option}: unknown option; {nearest(option, ('-h', '--help', FOLDER_OPTION, *SWEEP))}")
    jobs = conf.points(_listed(conf, overrides)) if sweep else expand_methods(conf, overrides)
    if sweep or any(override.startswith("launcher=") for override in overrides):
        composed = [conf.compose("config", job) for job in jobs]
        settings = [Run.of(point) for point in composed]  # a mistake in the last point shows before the first runs
        if "slurm" in composed[0].values:
            slurm = settings_of(Slurm, composed[0].values["slurm"], "slurm.")
            plain = [[text for text in job if not text.startswith(("launcher=", "slurm."))] for job in jobs]
            here = [[*job, *conf.search_path()] for job in plain]
            return submit(slurm, here, distinct(plain), settings[0].results_dir)
        return _jobs(conf, jobs, composed)
    return _jobs(conf, jobs)


def _listed(conf: Conf, overrides: Sequence[str]) -> list[str]:
    """Overrides of a sweep, with every method that all stands for."""
    key = "method="
    return [
        key + ",".join(_named(conf, text.removeprefix(key))) if text.startswith(key) else text for text in overrides
    ]


def distinct(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What each job has and not all have, as its name; a method by its name alone."""
    shared = set(jobs[0]).intersection(*jobs)
    return [" ".join(text.removeprefix("method=") for text in job if text not in shared) for job in jobs]


def _jobs(conf: Conf, jobs: Sequence[Sequence[str]], composed: Sequence[Composed] = ()) -> int:
    """Run one job after another. What one method lacks keeps no other from running, and is said again at the end.

    composed: the jobs' configurations, where they are known. Of one job among several an error of its code too is only
    printed. Returns 2 when nothing was measured, 1 when a method was left out or some turn failed.
    """
    from methods.errors import UserError, first_line

    statuses: list[int] = []
    lacking: dict[str, list[str]] = {}  # what is wrong: with which methods
    for number, (overrides, name) in enumerate(zip(jobs, distinct(jobs), strict=True)):
        try:
            job = composed[number] if composed else conf.compose("config", overrides)
            statuses.append(_run(job, [*overrides, *conf.options()]))
        except Exception as error:
            if not isinstance(error, UserError):
                if not name:
                    raise
                traceback.print_exc()
                error = UserError(first_line(error))
            if str(error) not in lacking:  # most mistakes concern all methods alike
                print(error if not name else f"{name} is left out: {error}", file=sys.stderr)
            lacking.setdefault(str(error), []).append(name)
    if not statuses:
        return 2
    for why, names in lacking.items():
        print(f"not measured: {', '.join(names)}: {why}", file=sys.stderr)
    return max(1 if lacking else 0, *statuses)


def expand_methods(conf: Conf, overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides per method: method=a,b becomes two, method=all one for each of all_methods."""
    jobs: list[list[str]] = [[]]
    for override in overrides:
        key, _, value = override.partition("=")
        names = [override]
        if key == "method":
            names = [f"method={name}" for name in _named(conf, value)]
        jobs = [[*job, name] for job in jobs for name in names]
    return jobs


def _named(conf: Conf, methods: str) -> list[str]:
    """The methods of a list a,b in which all may stand."""
    return [name for part in methods.split(",") for name in (all_methods(conf) if part == "all" else [part])]


def all_methods(conf: Conf) -> list[str]:
    """What method=all stands for: every method but the baseline and transformers' own generate."""
    return [name for name in conf.choices("method") if name != "vanilla" and not name.startswith("hf_")]


def _run(composed: Composed, overrides: Sequence[str]) -> int:
    from bench.session import run
    from bench.settings import CUSTOM, Run

    settings = Run.of(composed)
    if composed.choices["model"] != CUSTOM and any(text.startswith("model.path=") for text in overrides):
        path, name = settings.model.path, settings.model.name
        print(f"model.path={path}: taken for {name}; if it is another model, model=custom is meant", file=sys.stderr)
    return run(settings, shlex.join(["python", "-m", "bench.run", *overrides])).status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
