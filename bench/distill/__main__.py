"""python -m bench.distill model=smollm2-135m output=distilled.jsonl

The target writes the conversations that its drafts are trained on, as for EAGLE-3 (arXiv 2503.01840). Prompts come from
a file, or from the target too: sampled behind its user header (as in Magpie, arXiv 2406.08464), which needs no data.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.command import configured, goes_on

if TYPE_CHECKING:
    from bench.config import Conf

USAGE = """usage: python -m bench.distill [model=NAME] output=FILE.jsonl [prompts=FILE] [exclude=FILE] [key=value ...]
models: {model}
keys and their defaults: conf/distill.yaml, conf/model/NAME.yaml"""


@configured(goes_on, USAGE)
def main(conf: Conf, overrides: list[str]) -> int:
    """Write conversations until there are as many as asked for. Returns the exit status."""
    from bench.settings import Distill

    settings = Distill.of(conf.compose("distill", overrides))
    from bench.distill.work import distill  # imports torch

    distill(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
