"""How fast is the engine: target passes by rows, methods against vanilla turn by turn, and what memory allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from bench.gauge import Gauge
    from bench.measure import Generator, Timed
    from bench.settings import Speed
    from methods.engine.llama import Llama

PASSES = "passes by rows"  # what is timed besides methods
Turn = Callable[[list[int]], "Timed"]  # answers a prompt of token ids


@dataclass(frozen=True)
class Pair:
    """One turn of both sides on the same prompt."""

    question: int
    method: Timed
    vanilla: Timed


def make_prompts(speed: Speed, folder: Path, target: Llama) -> list[list[int]]:
    """Prompt ids: the first `limit` questions of each subtask, or as many random ones for a model of random weights."""
    import torch

    from bench.chat import Chat, Message
    from bench.questions.choice import select
    from bench.questions.formats import read_questions
    from bench.questions.sets import find
    from bench.questions.spec_bench import SUBTASKS

    if speed.model.weights == "random":
        drawn = torch.Generator().manual_seed(0)
        shape = (speed.limit * len(SUBTASKS), speed.prompt_tokens)
        return torch.randint(target.config.vocab_size, shape, generator=drawn).tolist()
    questions = read_questions(find(speed.questions, speed.data.path), speed.questions.subtasks, [])
    chat = Chat(folder, *speed.model.chat)
    first = select(questions, limit=speed.limit)
    return [chat.prompt_ids([*question.opening, Message("user", question.turns[0])]) for question in first]


def turn(generator: Generator, target: Llama, max_new_tokens: int, gauge: Gauge | None = None, side: str = "") -> Turn:
    """A side of this process; gauge: what else is read of the device in its turns."""
    from bench.measure import timed_generation

    return partial(
        timed_generation, generator, max_new_tokens=max_new_tokens, device=target.device, gauge=gauge, side=side
    )


def paired(method: Turn, vanilla: Turn, prompts: list[list[int]], repeats: int, target: Llama) -> Iterator[Pair]:
    """Both sides on every prompt, taking turns at going first; the first round warms up and is dropped."""
    for repeat in range(repeats + 1):
        with nullcontext() if repeat else target.preparing():
            for question, prompt in enumerate(prompts):
                order = [method, vanilla][:: 1 if (repeat + question) % 2 else -1]
                timed = {id(turn): turn(prompt) for turn in order}
                if repeat:
                    yield Pair(question, timed[id(method)], timed[id(vanilla)])


def summarise(pairs: list[Pair]) -> dict[str, Any]:
    """Paired speedup over vanilla with its interval, CR, and where the time of both sides went."""
    from bench.metrics import compression_ratio

    lengths = [step.emitted for pair in pairs for step in pair.method.generation.steps]
    return {
        **by_question("speedup_paired", pairs, lambda pair: _rate(pair.method) / _rate(pair.vanilla)),
        "cr": compression_ratio(lengths),
        "tokens_per_s": statistics.median(_rate(pair.method) for pair in pairs),
        "vanilla_tokens_per_s": statistics.median(_rate(pair.vanilla) for pair in pairs),
        "shares": shares([pair.method for pair in pairs]),
        "vanilla_shares": shares([pair.vanilla for pair in pairs]),
        "turns": {"method": _turns([p.method for p in pairs]), "vanilla": _turns([p.vanilla for p in pairs])},
        "equal": all(pair.method.generation.tokens == pair.vanilla.generation.tokens for pair in pairs),
    }


def by_question(name: str, pairs: list[Pair], ratio: Callable[[Pair], float]) -> dict[str, Any]:
    """`name`: geometric mean over questions of a pair's ratio; with its 95 % interval and every ratio."""
    import numpy as np

    from bench.metrics import geometric_mean, ratio_interval

    ratios: dict[int, list[float]] = {}
    for pair in pairs:
        ratios.setdefault(pair.question, []).append(ratio(pair))
    means = np.array([geometric_mean(np.array(values)) for values in ratios.values()])
    interval = ratio_interval(means)
    return {
        name: geometric_mean(means),
        "interval": [interval.low, interval.high] if interval else [None, None],
        "ratios": list(ratios.values()),
    }


def _rate(timed: Timed) -> float:
    return len(timed.generation.tokens) / timed.wall_s


def of_device(pairs: list[Pair], prompts: list[list[int]], facts: dict[str, Any]) -> dict[str, Any]:
    """What vanilla's decoding reaches of what memory gives, and what the device said of both sides' turns.

    facts: `memory_facts`. What was not told is None.
    """
    from bench.metrics import memory_share, readings

    method, vanilla = (_table(pairs, prompts, side) for side in ("method", "vanilla"))
    return {
        "vanilla_memory_share": memory_share(facts, vanilla),
        "readings": {"method": readings(method), "vanilla": readings(vanilla)},
        "throttled": [timed.throttled for pair in pairs for timed in (pair.method, pair.vanilla)],
    }


READ = ("peak_memory_bytes", "energy_millijoules", "sm_mhz", "temperature_c")


def _table(pairs: list[Pair], prompts: list[list[int]], side: str) -> pd.DataFrame:
    """One side's turns as bench.metrics has them."""
    import pandas as pd

    turns = [(getattr(pair, side), len(prompts[pair.question])) for pair in pairs]
    rows = [
        {
            **{name: getattr(timed, name) for name in ("wall_s", "prefill_s", "throttled", *READ)},
            "steps": len(timed.generation.steps),
            "prompt_tokens": prompt,
            "new_tokens": len(timed.generation.tokens),
        }
        for timed, prompt in turns
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(READ, float))


def _turns(turns: list[Timed]) -> dict[str, list[Any]]:
    """What bench.predict makes costs of (see its Times), a value a turn."""
    times = ("prefill_s", "draft_s", "verify_s", "wall_s")
    return {
        "drafted": [[step.drafted for step in timed.generation.steps] for timed in turns],
        **{name: [getattr(timed, name) for timed in turns] for name in times},
    }


def shares(turns: list[Timed]) -> dict[str, float]:
    """Parts of the wall time; overhead is what prefill, draft and verify leave."""
    wall = sum(timed.wall_s for timed in turns)
    parts = {
        name: sum(getattr(timed, f"{name}_s") for timed in turns) / wall for name in ("prefill", "draft", "verify")
    }
    return parts | {"overhead": 1 - sum(parts.values())}


MOST_BYTES = 2**30  # that are read to know the bandwidth: beyond every cache, and a fraction of a second


def memory_facts(target: Llama) -> dict[str, int]:
    """What the weights take, what of them a decoding step and the head read, and how fast memory gives it.

    In bytes, bytes a token of context, and bytes/s.
    """
    config, item = target.config, target.weights.embedding.element_size()
    return {
        "weight_bytes": target.weight_bytes,
        "step_bytes": target.step_bytes,
        "head_bytes": config.vocab_size * config.hidden_size * item,
        "kv_bytes_per_token": 2 * config.num_layers * config.num_kv_heads * config.head_dim * item,
        "read_bytes_per_s": round(read_bandwidth(target.step_bytes, target.device)),
    }


def read_bandwidth(size_bytes: int, device: torch.device) -> float:
    """Bytes/s of reading so much memory, up to 1 GiB: no pass can be faster than the weights that it reads."""
    import torch

    buffer = torch.ones(max(1, min(size_bytes, MOST_BYTES) // 4), dtype=torch.float32, device=device)
    return 4 * len(buffer) / min(_seconds(buffer.sum, device) for _ in range(9))


def pass_costs(target: Llama, rows: list[int], past: int, passes: int) -> dict[int, float]:
    """Median milliseconds of one target pass, head included, for each number of rows; the sizes take turns."""
    import torch

    device = target.device
    cache = target.new_cache(past + max(rows), rows=max(rows))
    ids = torch.randint(target.config.vocab_size, (past + max(rows),), device=device)
    positions = torch.arange(past + max(rows), device=device)
    with torch.inference_mode():
        target.run(target.embed(ids[:past]), positions[:past], cache, slice(0, None))

        def one(count: int) -> None:
            cache.truncate(past)
            here = slice(past, past + count)
            target.answer(target.embed(ids[here]), positions[here], cache)

        times: dict[int, list[float]] = {count: [] for count in rows}
        with target.preparing():
            for count in rows * 2:
                one(count)
        for _ in range(passes):
            for count in rows:
                times[count].append(_seconds(partial(one, count), device))
    return {count: 1e3 * statistics.median(values) for count, values in times.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
