"""python -m bench.distill model=smollm2-135m output=distilled.jsonl

The target writes the conversations that its drafts are trained on, as for EAGLE-3 (arXiv 2503.01840). Prompts come from
a file, or from the target too: sampled behind its user header (as in Magpie, arXiv 2406.08464), which needs no data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.command import command, goes_on

USAGE = """usage: python -m bench.distill [model=NAME] output=FILE.jsonl [prompts=FILE] [exclude=FILE] [key=value ...]
models: {models}
keys and their defaults: conf/distill.yaml, conf/model/NAME.yaml"""


@command(goes_on)
def main(arguments: Sequence[str]) -> int:
    """Write conversations until there are as many as asked for. Returns the exit status."""
    from bench.config import Conf
    from bench.settings import Distill

    conf, overrides = Conf.given(arguments)
    if {"-h", "--help"} & set(overrides):
        print(USAGE.format(models=", ".join(conf.choices("model"))))
        return 0
    settings = Distill.of(conf.compose("distill", overrides))
    from bench.distill.work import distill  # imports torch

    distill(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
