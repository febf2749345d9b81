"""python -m bench.predict RUN... [cost=FILE] [card=NAME]: what recorded runs would gain on another machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.command import again, command, key_values
from methods.errors import UserError

USAGE = """usage: python -m bench.predict RUN... [cost=FILE] [card=NAME] [held_out=true]
       python -m bench.predict paper

  RUN             a run directory, with its baseline; of one method's runs with trees of several sizes the best is said
  cost=FILE       what a pass by rows, a draft and vanilla cost: a file that bench.speed methods=[METHOD] wrote
  card=NAME       a card of bench/reference/cards.csv by its published peaks; without cost= and card=: all of them
  held_out=true   predict one half of the questions from the other, beside what was measured; and random halves
  paper           the paper's Table 1: what its CR gives on a V100's roofline, beside its printed speedups

Speedups are of decoding, without prefill. How costs are made: bench/predict/costs.py."""


@command(again, USAGE)
def main(arguments: Sequence[str]) -> int:
    """Print predictions. Returns 0, or 2 for a user's mistake."""
    runs = [argument for argument in arguments if "=" not in argument]
    settings = [argument for argument in arguments if "=" in argument]
    given = key_values(settings, {"cost": "", "card": "", "held_out": "false"})
    if given["held_out"] not in ("true", "false"):
        raise UserError(f"held_out={given['held_out']}: expected held_out=true or false")
    if "paper" in runs:
        if len(arguments) > 1:
            raise UserError("paper takes no runs and no settings")
        from bench.predict.paper import table

        print(table())
        return 0
    if not runs:
        raise UserError("RUN is missing: give run directories")
    from bench.predict.tables import held_out, predictions

    if given["held_out"] == "true":
        if given["card"]:
            raise UserError(f"card={given['card']}: held_out=true predicts the machine of the run; valid: cost=FILE")
        print(held_out([Path(run) for run in runs], given["cost"]))
    else:
        print(predictions([Path(run) for run in runs], given["cost"], given["card"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
