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
methods: {methods}
models:  {models}
questions: {questions}; or data.path=FILE
tasks:   all, mt_bench, translation, summarization, qa, math_reasoning, rag; of your own questions, their categories
keys and their defaults: conf/config.yaml, conf/method/NAME.yaml, conf/model/NAME.yaml, conf/questions/NAME.yaml"""


@command(goes_on)
def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for. Returns the worst exit status: 0 done, 1 not all turns lossless, 2 input."""
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
    """Run one job after another; a mistake that concerns one method keeps no other from running."""
    from methods.errors import UserError

    statuses, said = [0], set()
    for overrides in jobs:
        try:
            statuses.append(_run(conf.compose("config", overrides), overrides))
        except UserError as error:
            statuses.append(2)
            if str(error) not in said:  # most mistakes concern all methods alike
                print(error, file=sys.stderr)
            said.add(str(error))
    return max(statuses)


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
    """What method=all stands for: every method but vanilla, the baseline, and transformers' own generate."""
    return [name for name in conf.choices("method") if name != "vanilla" and not name.startswith("hf_")]


def _run(composed: Any, overrides: Sequence[str]) -> int:
    from bench.session import run
    from bench.settings import Run

    return run(Run.of(composed), " ".join(["python -m bench.run", *overrides])).status


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
