"""`accelerate launch --cpu --num_processes N`, mended.

Without an MPI host file accelerate's launcher starts one process on a CPU, whatever N is, and does not hand N on
(huggingface/accelerate#2741): training would silently run with 1/N of the batch asked for. Torch's own launcher starts
all of them, and accelerate inside takes them as its own.
"""

from __future__ import annotations

import argparse
import os
import sys


def start_missing_processes(arguments: list[str]) -> None:
    """Replace this process by torch's launcher if accelerate's was asked for several CPU processes and started one."""
    import psutil

    parent = psutil.Process().parent()
    count = wanted_processes(os.environ, parent.cmdline() if parent else [])
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "bench.train", *arguments])


def wanted_processes(environment: os._Environ[str] | dict[str, str], parent: list[str]) -> int:
    """Processes that `accelerate launch --cpu` was asked for but did not start; 1 if this is not such a launch."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    # accelerate sets MASTER_ADDR for several processes; a launcher that does start them sets WORLD_SIZE as well.
    if not on_cpu or "MASTER_ADDR" not in environment or "WORLD_SIZE" in environment:
        return 1
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--num_processes", "--num-processes", type=int, default=1)
    return int(flags.parse_known_args(parent)[0].num_processes)
