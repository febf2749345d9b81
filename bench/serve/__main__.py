"""python -m bench.serve model=custom model.path=org/model server.url=http://a:8000 server.baseline_url=http://b:8000

Measures a server that speculates against a plain one of the same engine and model, at several loads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from bench.command import command, goes_on

LEVELS = re.compile(r"^concurrency=(\d+(?:,\d+)+)$")  # a list without the brackets that a shell would take
USAGE = """usage: python -m bench.serve server.url=URL server.baseline_url=URL [model=NAME] [key=value ...]
       python -m bench.serve server.launch=COMMAND server.baseline_launch=COMMAND ...      started here, at {{port}}
models, whose tokenizers make the prompts: {models}; server.prompt=chat needs none
keys and their defaults: conf/serve.yaml, conf/model/NAME.yaml"""


@command(goes_on)
def main(arguments: Sequence[str]) -> int:
    """Measure two servers. Returns 0, or 1 where requests failed or greedy answers diverged; 2 for a mistake."""
    from bench.config import Conf
    from bench.settings import Serve
    from bench.types import settings_of

    conf, overrides = Conf.given(arguments)
    if {"-h", "--help"} & set(overrides):
        print(USAGE.format(models=", ".join(conf.choices("model"))))
        return 0
    composed = [LEVELS.sub(r"concurrency=[\1]", text) for text in overrides]
    settings = settings_of(Serve, conf.compose("serve", composed).values)
    from bench.serve.session import run  # imports torch

    return run(settings, " ".join(["python -m bench.serve", *overrides]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
