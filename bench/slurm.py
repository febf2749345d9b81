"""launcher=slurm: the runs of a command as the jobs of one Slurm array, watched until the last has ended."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench.files import make_folder, replace_text
from bench.settings import check_least
from methods.errors import UserError, nearest

POLL_S = 10.0  # between two looks at the queue, as often as one asks a cluster's controller
MISSING = 3  # looks without a job in the queue or a status: a shared file system may show the status a little late
GPUS = re.compile(r"\bgpu(?::[^:,(]+)?:(\d+)")  # in "gpu:a100:4(S:0-1),gpu:2": 4 and 2


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """conf/launcher/slurm.yaml: what each job asks for."""

    partition: str | None
    account: str | None
    cpus: int
    gpus: int
    minutes: int
    options: dict[str, Any] | None

    def __post_init__(self) -> None:
        check_least(1, **{"slurm.cpus": self.cpus, "slurm.minutes": self.minutes})
        check_least(0, **{"slurm.gpus": self.gpus})

    def sbatch(self) -> list[str]:
        """The options of sbatch that say so."""
        gres = f"gpu:{self.gpus}" if self.gpus else None
        asked = {"partition": self.partition, "account": self.account, "gres": gres, **(self.options or {})}
        given = [f"--{key}={value}" for key, value in asked.items() if value is not None]
        return [*given, "--ntasks=1", f"--cpus-per-task={self.cpus}", f"--time={self.minutes}"]


@dataclass(frozen=True)
class Node:
    """A node as a member of one partition. minutes: the longest that a job may take there."""

    partition: str
    default: bool
    cpus: int
    gpus: int
    minutes: float


def submit(slurm: Slurm, jobs: Sequence[Sequence[str]], names: Sequence[str], results_dir: str) -> int:
    """Submit a `bench.run` for each list of overrides, and watch. Returns the worst status, 1 for a job without one.

    Raises UserError, before anything is submitted, for what no node of the cluster has, and for what sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("launcher=slurm: there is no sbatch here; submit from a machine of the cluster")
    check(slurm, nodes())
    folder = Path(mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=make_folder(f"{results_dir}/slurm")))
    script = folder / "jobs.sh"
    replace_text(script, script_text(jobs, folder), "results_dir")
    place = [f"--array=0-{len(jobs) - 1}", "--job-name=speculative-bench", f"--output={folder}/%a.log"]
    done = _ask("sbatch", "--parsable", *slurm.sbatch(), *place, str(script))
    if done.returncode:
        raise UserError(f"sbatch: {_last_line(done.stderr).removeprefix('sbatch: error: ')}")
    array = done.stdout.strip().partition(";")[0]
    print(
        f"submitted to Slurm: {len(jobs)} jobs ({array}; scancel {array} ends them)\nlogs: {folder}/N.log", flush=True
    )
    statuses = watch(array, names, folder)
    elsewhere = [] if results_dir == "results" else [f"results_dir={results_dir}"]
    print(f"next: {shlex.join(['python', '-m', 'bench.report', *elsewhere])}")
    return max(1 if status is None else status for status in statuses)


def script_text(jobs: Sequence[Sequence[str]], folder: Path) -> str:
    """The array's script. A job leaves its exit status as N.status, unless a signal ended it: Slurm may requeue it."""
    commands = [shlex.join([sys.executable, "-m", "bench.run", *overrides]) for overrides in jobs]
    cases = [f"{number}) {command} ;;" for number, command in enumerate(commands)]
    kept = f'[ $status -ge 128 ] || echo $status > {shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID".status'
    lines = ["#!/bin/bash", "case $SLURM_ARRAY_TASK_ID in", *cases, "esac", "status=$?", kept, "exit $status"]
    return "\n".join(lines) + "\n"


def check(slurm: Slurm, known: Sequence[Node]) -> None:
    """Raises UserError for a partition that is not there, and for more than any node of it has."""
    if not known:
        return
    names = sorted({node.partition for node in known})
    if slurm.partition is None and not any(node.default for node in known):
        raise UserError(f"slurm.partition: this cluster has no default one; valid: {', '.join(names)}")
    chosen = slurm.partition.split(",") if slurm.partition else [node.partition for node in known if node.default]
    for name in chosen:
        if name not in names:
            raise UserError(f"slurm.partition={name}: unknown; {nearest(name, names)}")
    mine = [node for node in known if node.partition in chosen]
    where = f"partition {','.join(dict.fromkeys(chosen))}"
    if slurm.gpus and not any(node.gpus for node in mine):
        raise UserError(f"slurm.gpus={slurm.gpus}: {where} has no GPUs; slurm.gpus=0 asks for none")
    for key in ("cpus", "gpus", "minutes"):
        most = max(getattr(node, key) for node in mine)
        if getattr(slurm, key) > most:
            raise UserError(f"slurm.{key}={getattr(slurm, key)}: {where} gives at most {most} to a job")
    if not any(node.cpus >= slurm.cpus and node.gpus >= slurm.gpus for node in mine):
        raise UserError(f"slurm.cpus={slurm.cpus} slurm.gpus={slurm.gpus}: no node of {where} has both")


def nodes() -> list[Node]:
    """What sinfo says; nothing where it does not answer."""
    lines = _ask("sinfo", "--noheader", "--Node", "--format=%P|%c|%G|%l").stdout.splitlines()
    found = []
    for partition, cpus, gres, limit in (line.strip().split("|") for line in lines if line.count("|") == 3):
        gpus = sum(map(int, GPUS.findall(gres)))
        name = partition.removesuffix("*")
        found.append(Node(name, name != partition, int(cpus), gpus, _minutes(limit)))
    return found


def watch(array: str, names: Sequence[str], folder: Path) -> list[int | None]:
    """Say how many jobs have ended whenever that changes, until all have. Returns their statuses; None: left none."""
    ended: dict[int, int | None] = {}
    unseen = dict.fromkeys(range(len(names)), 0)
    told = ""
    while True:
        queued = queue(array)
        for job, name in enumerate(names):
            if job in ended:
                continue
            file = folder / f"{job}.status"
            left = file.read_text().strip() if file.is_file() else ""
            unseen[job] = 0 if queued is None or job in queued else unseen[job] + 1
            if left or unseen[job] >= MISSING:
                ended[job] = int(left) if left else None
                if ended[job] != 0:
                    print(failure(name, ended[job], folder / f"{job}.log"), file=sys.stderr, flush=True)
        line = _progress(ended, queued or {}, len(names))
        if line != told:
            print(line, flush=True)
        if len(ended) == len(names):
            return [ended[job] for job in range(len(names))]
        told = line
        time.sleep(POLL_S)


def failure(name: str, status: int | None, log: Path) -> str:
    """Which job failed, how, and where its log is."""
    said = _last_line(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else ""
    how = "was killed or ran out of time" if status is None else f"ended with status {status}"
    return f"{name or 'the job'} {how}; log: {log}" + (f", which ends: {said}" if said else "")


def queue(array: str) -> dict[int, str] | None:
    """Jobs of an array that wait or run: by number, RUNNING or why it waits. None: squeue does not answer."""
    done = _ask("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K|%T|%r")
    if done.returncode and "Invalid job id" not in done.stderr:  # what it says of an array that ended a while ago
        return None
    rows = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    return {int(job): why if state == "PENDING" else "RUNNING" for job, state, why in rows}


def _progress(ended: dict[int, int | None], queued: dict[int, str], count: int) -> str:
    states = [state for job, state in queued.items() if job not in ended]
    waiting = [state for state in states if state != "RUNNING"]
    parts = [f"{len(ended)} of {count} done"]
    if failed := sum(status != 0 for status in ended.values()):
        parts.append(f"{failed} failed")
    if running := len(states) - len(waiting):
        parts.append(f"{running} running")
    if waiting:
        why = ", ".join(sorted(set(waiting) - {"None"}))  # None: the controller has not looked yet
        parts.append(f"{len(waiting)} waiting" + (f" ({why})" if why else ""))
    return ", ".join(parts)


def _minutes(limit: str) -> float:
    """A time limit such as 1-12:30:00, 30:00 or infinite."""
    days, _, clock = limit.rpartition("-")
    numbers = clock.split(":")
    if not all(number.isdigit() for number in numbers):
        return math.inf
    hours, minutes = ([0] * 3 + [int(number) for number in numbers])[-3:-1]
    return int(days or 0) * 1440 + hours * 60 + minutes


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """A command of Slurm's; one that cannot be run is one that failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
