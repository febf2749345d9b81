"""`accelerate launch --cpu --num_processes N`, mended.

Without an MPI host file accelerate's launcher starts one process on a CPU, whatever N is, and does not hand N on
(huggingface/accelerate#2741): training would silently run with 1/N of the batch asked for. Torch's own launcher starts
all of them, and accelerate inside takes them as its own.
"""

from __future__ import annotations

import os
import sys


def start_missing_processes(arguments: list[str]) -> None:
    """Replace this process by torch's launcher if accelerate's was asked for several CPU processes and started one."""
    count = wanted_processes(os.environ, _parent_command())
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "bench.train", *arguments])


def wanted_processes(environment: os._Environ[str] | dict[str, str], parent: list[str]) -> int:
    """Processes that `accelerate launch --cpu` was asked for but did not start; 1 if this is not such a launch."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    # accelerate sets MASTER_ADDR for several processes; a launcher that does start them sets WORLD_SIZE as well.
    if not on_cpu or "MASTER_ADDR" not in environment or "WORLD_SIZE" in environment:
        return 1
    for flag in ("--num_processes", "--num-processes"):
        for index, argument in enumerate(parent):
            if argument == flag and parent[index + 1 : index + 2]:
                return int(parent[index + 1])
            if argument.startswith(f"{flag}="):
                return int(argument.partition("=")[2])
    return 1


def _parent_command() -> list[str]:
    import psutil

    parent = psutil.Process().parent()
    return parent.cmdline() if parent else []
