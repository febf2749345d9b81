"""Time and memory of a whole report on Spec-Bench's size: python -m tests.bench.speed.report

480 questions, 3 repeats, 12 methods: 17,280 answer lines and as many of the baseline, with token ids.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report.simulate import CATEGORIES, Plan, Truth, write_run, write_tokenizer

METHODS = ("kangaroo", "medusa", "lookahead", "rest", "vanilla", *(f"method{n}" for n in range(7)))


def write_results(folder: Path) -> None:
    """Twelve simulated runs of Spec-Bench's size."""
    tokenizer = str(write_tokenizer(folder / "tokenizer"))
    for number, method in enumerate(METHODS):
        truth = Truth(gamma=0, step_cost=0) if method == "vanilla" else Truth(0.35 + 0.03 * number, 0.3)
        config = {"model": {"name": "vicuna-7b", "path": tokenizer, "dtype": "float16"}}
        write_run(folder, Plan(model="vicuna-7b", method=method, per_category=80, tokens=250, seed=number, truth=truth,
                               categories=CATEGORIES, demonstration=False, config=config))  # fmt: skip


def main() -> int:
    """In a process of its own, as a user starts it: its imports are part of the time, making the runs is not."""
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            results = Path(sys.argv[1])
        else:
            results = Path(folder)
            write_results(results)
        files = list(results.glob("runs/**/*.jsonl"))
        size = sum(path.stat().st_size for path in files) / 2**20
        started = time.perf_counter()
        report = subprocess.run([sys.executable, "-m", "bench.report", f"results_dir={results}"])
        wall = time.perf_counter() - started
        page = (results / "report" / "index.html").stat().st_size / 2**20
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(files)} files, {size:.0f} MiB: {wall:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU)")
    print(f"peak memory {used.ru_maxrss / 2**20:.2f} GiB, page {page:.1f} MiB")
    return report.returncode


if __name__ == "__main__":
    sys.exit(main())
