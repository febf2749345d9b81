"""python -m bench.speed.lookups [tokens=2000] [steps=500]: what a draft costs that no model makes.

On one core, with the settings of conf/method. The text is that of bench.speed.rest: a third of it stood there before.
A step is one call of `propose` after one to three new tokens; over the steps the context grows around the given length.
Wanted, so that drafting does not show beside a target pass: 20 us (pld, sam), 60 us (recycling, whose matrix is full).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.command import again, command, numbers
from bench.speed.rest import VOCABULARY, one_core, text

WANTED_US = {"pld": 20, "sam": 20, "recycling": 60}


@dataclass
class Measured:
    """What one method took, over several texts."""

    start_ms: list[float] = field(default_factory=list)  # taking in a prompt
    propose_us: list[float] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)  # candidates that could be accepted, of every step


def target() -> Any:
    """A model with a large vocabulary and nothing else: only its shape and its device are asked for."""
    from methods.proof import tiny_model

    width: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "context"), 8)
    return tiny_model(vocab_size=VOCABULARY, num_layers=1, num_heads=1, num_kv_heads=1, **width)


def measure(name: str, tokens: int, steps: int, texts: int = 4) -> Measured:
    """Steps of a method, on one core."""
    import torch

    from bench.binder import bind
    from bench.config import installed
    from methods.decoder import Prefill
    from methods.sampling import Sampler

    model = target()
    states = torch.zeros(1, model.config.hidden_size)  # what the target says is no matter here
    prefill = Prefill((), states, model.new_cache(1), Sampler(0.0, 0, VOCABULARY, model.device))
    settings = installed().compose("config", [f"method={name}"]).values["method"]
    method = bind(settings, "method").make(target=model)
    found, new = Measured(), np.random.default_rng(0).integers(1, 4, steps).tolist()
    torch.set_num_threads(1)
    with one_core(), torch.inference_mode():
        for seed in range(texts):
            content = np.minimum(text(tokens + 3 * steps, seed), VOCABULARY - 1).tolist()  # ends of documents too
            end = max(1, tokens - steps)
            started = time.perf_counter()
            drafter = method.start(content[:end], prefill)
            found.start_ms.append(1e3 * (time.perf_counter() - started))
            if name == "recycling":
                drafter.successors.matrix[:-1] = torch.randint(VOCABULARY, (VOCABULARY, 8))
            for count in new:
                end += count
                known = content[:end]
                started = time.perf_counter()
                draft = drafter.propose(known, tokens)
                found.propose_us.append(1e6 * (time.perf_counter() - started))
                found.drafted.append(int(draft.tree.depths.count_nonzero()))
    return found


def report(name: str, found: Measured) -> str:
    """One line of figures, beside what is wanted."""
    low, middle, high = (float(np.percentile(found.propose_us, percent)) for percent in (5, 50, 95))
    return (
        f"{name:<10} {middle:6.1f} us median, {low:.1f} to {high:.1f} (5 to 95 %); wanted: {WANTED_US[name]} or less; "
        f"{np.mean(found.drafted):.1f} candidates a step, {np.median(found.start_ms):.1f} ms to take in a prompt"
    )


@command(again)
def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0, or 2 for an argument that is none."""
    sizes = numbers(arguments, {"tokens": 2_000, "steps": 500}, least=10)
    print(f"after {sizes['tokens']} tokens, one core, other work on it included")
    for name in WANTED_US:
        print(report(name, measure(name, **sizes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
