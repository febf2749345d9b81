"""python -m bench.run method=kangaroo model=joey task=all

Measures a method against vanilla decoding, turn by turn, and writes a run directory under results/runs.
method=a,b and method=all run several, one after another; -m hands other sweeps to Hydra and its launchers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

SWEEP = ("-m", "--multirun")
USAGE = """usage: python -m bench.run [method=NAME[,NAME...]|all] [model=NAME] [task=NAME] [key=value ...]
       python -m bench.run -m key=value,value ...       a Hydra sweep
method=all: {all}; transformers' own generate (hf_...) only when named
methods: {methods}
models:  {models}
tasks:   {tasks}
keys and their defaults: conf/config.yaml, conf/method/NAME.yaml, conf/model/NAME.yaml"""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for. Returns the worst exit status: 0 done, 1 not all turns lossless, 2 input."""
    from bench.config import choices
    from methods.errors import UserError, nearest

    if {"-h", "--help"} & set(arguments):
        lists = {f"{g}s": ", ".join(choices(g)) for g in ("method", "model", "task")}
        print(USAGE.format(all=", ".join(all_methods()), **lists))
        return 0
    overrides = [argument for argument in arguments if argument not in SWEEP]
    try:
        for option in (override for override in overrides if override.startswith("-")):
            raise UserError(f"{option}: unknown option; {nearest(option, ('-h', '--help', *SWEEP))}")
        return _sweep(overrides) if len(overrides) < len(arguments) else _jobs(expand_methods(overrides))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        anew = any(o.partition("=")[::2] == ("resume", "false") for o in map(str.lower, overrides))
        same = "the same command without resume=false" if anew else "the same command"
        print(f"interrupted; {same} continues where it stopped", file=sys.stderr)
        return 130


def _jobs(jobs: Sequence[Sequence[str]]) -> int:
    """Run one job after another; a mistake that concerns one method keeps no other from running."""
    from methods.errors import UserError

    statuses, said = [0], set()
    for overrides in jobs:
        try:
            statuses.append(_job(overrides))
        except UserError as error:
            statuses.append(2)
            if str(error) not in said:  # most mistakes concern all methods alike
                print(error, file=sys.stderr)
            said.add(str(error))
    return max(statuses)


def expand_methods(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides per method: method=a,b becomes two, method=all one for each of all_methods."""
    jobs: list[list[str]] = [[]]
    for override in overrides:
        key, _, value = override.partition("=")
        names = [override]
        if key == "method":
            names = [f"method={name}" for name in _named(value)]
        jobs = [[*job, name] for job in jobs for name in names]
    return jobs


def _named(methods: str) -> list[str]:
    """The methods of a list a,b in which all may stand."""
    return [name for part in methods.split(",") for name in (all_methods() if part == "all" else [part])]


def all_methods() -> list[str]:
    """What method=all stands for: every method but vanilla, the baseline, and transformers' own generate."""
    from bench.config import choices

    return [name for name in choices("method") if name != "vanilla" and not name.startswith("hf_")]


def _job(overrides: Sequence[str]) -> int:
    from bench.config import compose_config

    config = compose_config("config", overrides)
    name = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("method=")), None)
    return _run(config, name or default_method(), overrides)


def default_method() -> str:
    """The method that conf/config.yaml names."""
    import yaml

    from bench.config import CONF

    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return str(next(entry["method"] for entry in defaults if "method" in entry))


def _run(config: Any, method: str, overrides: Sequence[str]) -> int:
    from bench.config import plain
    from bench.session import run

    return run({**plain(config), "method_name": method}, " ".join(["python -m bench.run", *overrides]))


def _sweep(overrides: Sequence[str]) -> int:
    """A Hydra sweep. Local jobs report their status here; a launcher's own log has those of remote ones."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from bench.config import CONF, check_sweep
    from bench.files import make_folder
    from methods.errors import UserError

    lists = [o if not o.startswith("method=") else "method=" + ",".join(_named(o.partition("=")[2])) for o in overrides]
    make_folder(check_sweep("config", lists)["results_dir"])  # where Hydra itself writes
    statuses = []

    def job(config: Any) -> None:
        hydra_config = HydraConfig.get()
        try:
            statuses.append(_run(config, hydra_config.runtime.choices["method"], hydra_config.overrides.task))
        except UserError as error:
            print(error, file=sys.stderr)
            statuses.append(2)

    sys.argv = ["bench.run", "-m", *lists]  # Hydra takes no option after an override
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    return max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
