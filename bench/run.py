"""python -m bench.run method=kangaroo model=joey task=all

Measures a method against vanilla decoding, turn by turn, and writes a run directory under results/runs.
method=a,b and method=all run several, one after another; -m hands other sweeps to Hydra and its launchers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.command import command, goes_on

if TYPE_CHECKING:
    from bench.config import Conf

SWEEP = ("-m", "--multirun")
USAGE = """usage: python -m bench.run [method=NAME[,NAME...]|all] [model=NAME] [task=NAME] [key=value ...]
       python -m bench.run -m key=value,value ...       a Hydra sweep
       --config-dir FOLDER                              methods and models of your own, laid out like conf/
method=all: {all}; transformers' own generate (hf_...) only when named
            (make bench alone leaves out recycling and layerskip, the slowest on joey)
methods: {methods}
models:  {models}
questions: {questions}; or data.path=FILE
tasks:   all, mt_bench, translation, summarization, qa, math_reasoning, rag; of your own questions, their categories
keys and their defaults: conf/config.yaml, conf/method/NAME.yaml, conf/model/NAME.yaml, conf/questions/NAME.yaml"""


@command(goes_on)
def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for. Returns the exit status: 0 done, 1 some turn or method failed, 2 input."""
    from bench.config import FOLDER_OPTION, Conf
    from methods.errors import UserError, nearest

    conf, overrides = Conf.given(arguments)
    if {"-h", "--help"} & set(overrides):
        lists = {f"{group.rstrip('s')}s": ", ".join(conf.choices(group)) for group in ("method", "model", "questions")}
        print(USAGE.format(all=", ".join(all_methods(conf)), **lists))
        return 0
    sweep = bool(set(SWEEP) & set(overrides))
    overrides = [override for override in overrides if override not in SWEEP]
    for option in (override for override in overrides if override.startswith("-")):
        raise UserError(f"{option}: unknown option; {nearest(option, ('-h', '--help', FOLDER_OPTION, *SWEEP))}")
    return _sweep(conf, overrides) if sweep else _jobs(conf, expand_methods(conf, overrides))


def _jobs(conf: Conf, jobs: Sequence[Sequence[str]]) -> int:
    """Run one job after another. What one method lacks keeps no other from running, and is said again at the end.

    Returns 2 when nothing was measured, 1 when a method was left out or some turn failed.
    """
    from methods.errors import UserError

    statuses: list[int] = []
    lacking: dict[str, list[str]] = {}  # what is wrong: with which methods
    for overrides in jobs:
        try:
            statuses.append(_run(conf.compose("config", overrides), overrides))
        except UserError as error:
            name = next((text.partition("=")[2] for text in overrides if text.startswith("method=")), "")
            if str(error) not in lacking:  # most mistakes concern all methods alike
                print(error if len(jobs) == 1 or not name else f"{name} is left out: {error}", file=sys.stderr)
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


def _run(composed: Any, overrides: Sequence[str]) -> int:
    from bench.session import run
    from bench.settings import CUSTOM, Run

    settings = Run.of(composed)
    if composed.choices["model"] != CUSTOM and any(text.startswith("model.path=") for text in overrides):
        path, name = settings.model.path, settings.model.name
        print(f"model.path={path}: taken for {name}; if it is another model, model=custom is meant", file=sys.stderr)
    return run(settings, " ".join(["python -m bench.run", *overrides])).status


def _sweep(conf: Conf, overrides: Sequence[str]) -> int:
    """A Hydra sweep. Local jobs report their status here; a launcher's own log has those of remote ones."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from bench.config import CONF, Composed, plain
    from bench.files import make_folder
    from bench.settings import Run
    from methods.errors import UserError

    lists = [
        o if not o.startswith("method=") else "method=" + ",".join(_named(conf, o.partition("=")[2])) for o in overrides
    ]
    inside = "method.fallback="  # to Hydra a choice of the group that it names; see Conf.compose
    lists = [f"method@{text}" if text.startswith(inside) else text for text in lists]
    make_folder(Run.of(conf.check_sweep("config", lists)).results_dir)  # where Hydra itself writes
    statuses = []

    def job(config: Any) -> None:
        hydra_config = HydraConfig.get()
        choices = OmegaConf.to_container(hydra_config.runtime.choices)
        try:
            statuses.append(_run(Composed(plain(config), choices), hydra_config.overrides.task))  # type: ignore[arg-type]
        except UserError as error:
            print(error, file=sys.stderr)
            statuses.append(2)

    sys.argv = ["bench.run", "-m", *lists, *conf.search_path()]  # Hydra takes no option after an override
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    return max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
