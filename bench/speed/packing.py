"""python -m bench.speed.packing: what packed matrices gain a target pass on this CPU.

joey packed, beside the same weights as they were loaded, in turns in one process. Ratios above 1 say that packing pays.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.command import again, command
from methods.errors import UserError

JOEY = Path(__file__).parent.parent / "assets" / "joey"
ROWS = (1, 2, 5, 16, 64)  # vanilla's step; short and long chains; trees
PAST, PASSES, ROUNDS = 256, 5, 15


def compare(dtype: str, rounds: int = ROUNDS) -> dict[int, list[float]]:
    """Time of a pass as loaded over the packed one's, for each number of rows and in each round."""
    from bench.speed.engine import pass_costs
    from methods.engine.checkpoint import load_model

    loaded, packed = (load_model(JOEY, dtype=dtype, device="cpu") for _ in range(2))
    packed.pack()
    ratios: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for number in range(rounds):
        for rows, found in ratios.items():
            order = (loaded, packed) if number % 2 else (packed, loaded)
            taken = {id(side): pass_costs(side, [rows], PAST, PASSES)[rows] for side in order}
            found.append(taken[id(loaded)] / taken[id(packed)])
    return ratios


@command(again)
def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0, or 2 when there are arguments."""
    import torch

    if arguments:
        raise UserError(f"{arguments[0]}: no arguments are taken")
    threads = torch.get_num_threads()
    print("rows of a pass" + "".join(f"{rows:>20}" for rows in ROWS))
    for count in dict.fromkeys((1, threads)):
        torch.set_num_threads(count)
        for dtype in ("float32", "bfloat16"):
            found = compare(dtype).values()
            shown = (f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in found)
            print(f"{dtype}, {count} threads".ljust(19) + "".join(f"{text:>20}" for text in shown), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
