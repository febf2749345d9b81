"""speculative-bench COMMAND ...: the same as python -m bench.COMMAND ..."""

from __future__ import annotations

import runpy
import sys

from methods.errors import nearest

COMMANDS = {
    "run": "measure a method against vanilla decoding",
    "report": "page, tables and figures of what was measured",
    "experiment": "an ablation of the paper: train, run, draw",
    "train": "train a draft, or build a datastore",
    "distill": "let a target write what its drafts are trained on",
    "serve": "two servers of a production engine under load, one of which speculates",
    "speed": "the engine beside transformers' generate and the machine's ceiling",
    "predict": "the speedup that a recorded run would have on another machine",
    "joey": "make the built-in model again",
}


def main() -> int:
    """Hand the arguments to a command, which imports what it needs by itself. Returns 2 for one that is not there."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: speculative-bench COMMAND [key=value ...]      COMMAND --help says more")
        print("\n".join(f"  {command:<12}{what}" for command, what in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"{name}: unknown command; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    del sys.argv[1]
    runpy.run_module(f"bench.{name}", run_name="__main__", alter_sys=True)  # it ends by sys.exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
