"""python -m bench.serve model=custom model.path=org/model server.url=http://a:8000 server.baseline_url=http://b:8000

Measures a server that speculates against a plain one of the same engine and model, at several loads.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from bench.command import configured, goes_on
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.config import Conf

LEVELS = re.compile(r"^concurrency=([^\[]*,.*)$")  # a list without the brackets that a shell would take
USAGE = """usage: python -m bench.serve server.url=URL server.baseline_url=URL [model=NAME] [key=value ...]
       python -m bench.serve server.launch=COMMAND server.baseline_launch=COMMAND ...      started here, at {{port}}
models, whose tokenizers make the prompts: {model}; server.prompt=chat needs none
keys and their defaults: conf/serve.yaml, conf/model/NAME.yaml"""


@configured(goes_on, USAGE)
def main(conf: Conf, overrides: list[str]) -> int:
    """Measure two servers. Returns 0, or 1 where requests failed or greedy answers diverged; 2 for a mistake."""
    from bench.settings import Serve
    from bench.types import settings_of

    settings = settings_of(Serve, conf.compose("serve", [_bracketed(text) for text in overrides]).values)
    from bench.serve.session import run  # imports torch

    return run(settings, " ".join(["python -m bench.serve", *overrides]))


def _bracketed(text: str) -> str:
    """concurrency=1,2 as Hydra wants it; all else as it is. Raises UserError for what is no list of numbers."""
    if not (found := LEVELS.match(text)):
        return text
    numbers = [part.strip() for part in found[1].split(",")]
    if not all(map(str.isdecimal, numbers)):
        raise UserError(f"{text}: must be numbers from 1, each once, such as 1,2,4")
    return f"concurrency=[{','.join(numbers)}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
