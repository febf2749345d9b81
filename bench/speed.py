"""python -m bench.speed [model=joey] [key=value]: how fast is the engine, beside transformers and what is possible?

Everything that is compared is timed in turns in one process. Three tables for each dtype and number of threads:
what one target pass of n rows costs, each method against vanilla with its 95 % interval, and where the time went.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bench.measure import Timed
    from bench.session import Sides
    from methods.engine.llama import Llama

USAGE = """usage: python -m bench.speed [model=NAME] [methods=[NAME,...]] [dtypes=[NAME,...]] [key=value ...]
models:  {models}
methods: {methods}
keys and their defaults: conf/speed.yaml, conf/model/NAME.yaml"""


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the raw values go to <results_dir>/speed/. Returns the exit status: 0, or 2 for bad input."""
    from bench.config import choices
    from methods.errors import UserError

    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(**{f"{group}s": ", ".join(choices(group)) for group in ("method", "model")}))
        return 0
    try:
        measure(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Pair:
    """One turn of both sides on the same prompt."""

    question: int
    method: Timed
    vanilla: Timed


def measure(arguments: Sequence[str]) -> None:
    """Run the whole measurement. Raises UserError for a mistake in the configuration."""
    import torch

    from bench import environment
    from bench.config import compose_config, locate, make_folder, plain
    from bench.session import DEFAULT_THREADS, fitting, rehearse
    from methods.engine.checkpoint import pick_device, resolve

    config = checked(plain(compose_config("speed", arguments)))
    model = config["model"]
    own = [text for text in arguments if text.startswith("model")]
    runs = {name: plain(compose_config("config", [f"method={name}", *own])) for name in config["methods"]}
    for run in runs.values():
        for dtype in config["dtypes"]:
            rehearse({**run, "model": {**model, "dtype": dtype}}, tokenizer=model["weights"] != "random")
    results = make_folder(config["results_dir"])
    folder = resolve(locate(model["path"]), model["revision"], weights=model["weights"] != "random")
    device = pick_device(model["device"])
    sections = []
    for dtype in config["dtypes"]:
        for threads in config["threads"] if device.type == "cpu" else [None]:
            torch.set_num_threads(threads or DEFAULT_THREADS)
            with fitting({**model, "dtype": dtype}, folder):
                found = section(config, runs, folder, dtype)
            found |= {"dtype": dtype, "threads": torch.get_num_threads()}
            sections.append(found)
            print(format_section(found, str(device)), flush=True)
    file = make_folder(str(results / "speed")) / f"{model['name']}.json"
    record = {"config": config, **environment.describe(device.type, DEFAULT_THREADS), "sections": sections}
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"raw values in {file}")


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with single values as lists. Raises UserError for values out of range."""
    from methods.errors import UserError

    lists = {key: config[key] for key in ("methods", "dtypes", "threads", "rows")}
    lists = {key: value if isinstance(value, list) else [value] for key, value in lists.items()}
    for key, values in lists.items():
        if not values or any(isinstance(value, int) and value < 1 for value in values):
            raise UserError(f"{key}={json.dumps(values)}: must be a list, not empty, of names or numbers from 1")
    for key in ("prompt_tokens", "max_new_tokens", "repeats", "past", "passes"):
        if config[key] < 1:
            raise UserError(f"{key}={config[key]}: must be at least 1")
    return {**config, **lists}


def section(config: dict[str, Any], runs: dict[str, dict[str, Any]], folder: Path, dtype: str) -> dict[str, Any]:
    """Everything measured for one dtype and the threads that are set now; runs: each method's configuration."""
    from bench.session import build, load_target

    target = load_target({**config["model"], "dtype": dtype}, folder, seed=0)
    prompts = make_prompts(config, folder, target)
    found: dict[str, Any] = {
        "weight_bytes": target.weight_bytes,
        "read_bytes_per_s": read_bandwidth(target.weight_bytes, target.device),
        "pass_ms": pass_costs(target, config["rows"], config["past"], config["passes"]),
        "methods": {},
    }
    for name, run in runs.items():
        sides = build({**run, "model": {**config["model"], "dtype": dtype}}, folder, target)
        pairs = list(paired(sides, prompts, config["max_new_tokens"], config["repeats"]))
        found["methods"][name] = summarise(pairs)
    return found


def make_prompts(config: dict[str, Any], folder: Path, target: Llama) -> list[list[int]]:
    """Prompt ids: the first question of each subtask, or random ids for a model of random weights."""
    import torch

    from bench.chat import Chat, Message
    from bench.questions import SUBTASKS, find_questions, read_questions, select

    if config["model"]["weights"] == "random":
        drawn = torch.Generator().manual_seed(0)
        shape = (len(SUBTASKS), config["prompt_tokens"])
        return torch.randint(target.config.vocab_size, shape, generator=drawn).tolist()
    questions = read_questions(find_questions(config["data"]["path"], built_in=config["model"]["built_in"]))
    chat = Chat(folder, config["model"]["chat_template"])
    first = select(questions, subtasks=SUBTASKS, limit=1, question_ids=None, shard="0/1")
    return [chat.prompt_ids([Message("user", question.turns[0])]) for question in first]


def paired(sides: Sides, prompts: list[list[int]], max_new_tokens: int, repeats: int) -> Iterator[Pair]:
    """Both sides on every prompt, taking turns at going first; the first round warms up and is dropped."""
    from bench.measure import timed_generation

    assert sides.baseline is not None
    for repeat in range(repeats + 1):
        for question, prompt in enumerate(prompts):
            order = [sides.method, sides.baseline][:: 1 if (repeat + question) % 2 else -1]
            timed = {id(side): timed_generation(side, prompt, max_new_tokens, sides.target.device) for side in order}
            if repeat:
                yield Pair(question, timed[id(sides.method)], timed[id(sides.baseline)])


def summarise(pairs: list[Pair]) -> dict[str, Any]:
    """Paired speedup over vanilla with its interval, CR, and where the time of both sides went."""
    import numpy as np

    from bench.metrics import compression_ratio, geometric_mean, ratio_interval

    ratios: dict[int, list[float]] = {}
    for pair in pairs:
        ratios.setdefault(pair.question, []).append(_rate(pair.method) / _rate(pair.vanilla))
    by_question = np.array([geometric_mean(np.array(values)) for values in ratios.values()])
    interval = ratio_interval(by_question)
    lengths = [step.emitted for pair in pairs for step in pair.method.generation.steps]
    return {
        "speedup_paired": geometric_mean(by_question),
        "interval": [interval.low, interval.high],
        "ratios": list(ratios.values()),
        "cr": compression_ratio(lengths),
        "tokens_per_s": statistics.median(_rate(pair.method) for pair in pairs),
        "vanilla_tokens_per_s": statistics.median(_rate(pair.vanilla) for pair in pairs),
        "shares": shares([pair.method for pair in pairs]),
        "vanilla_shares": shares([pair.vanilla for pair in pairs]),
        "equal": all(pair.method.generation.tokens == pair.vanilla.generation.tokens for pair in pairs),
    }


def _rate(timed: Timed) -> float:
    return len(timed.generation.tokens) / timed.wall_s


def shares(turns: list[Timed]) -> dict[str, float]:
    """Parts of the wall time; overhead is what prefill, draft and verify leave."""
    wall = sum(timed.wall_s for timed in turns)
    parts = {
        name: sum(getattr(timed, f"{name}_s") for timed in turns) / wall for name in ("prefill", "draft", "verify")
    }
    return parts | {"overhead": 1 - sum(parts.values())}


def read_bandwidth(size_bytes: int, device: torch.device) -> float:
    """Bytes/s of reading as much memory as the weights take: no pass over one row can be faster than its weights."""
    import torch

    buffer = torch.ones(max(1, size_bytes // 4), dtype=torch.float32, device=device)
    return 4 * len(buffer) / min(_seconds(buffer.sum, device) for _ in range(9))


def pass_costs(target: Llama, rows: list[int], past: int, passes: int) -> dict[int, float]:
    """Median milliseconds of one target pass, head included, for each number of rows; the sizes take turns."""
    import torch

    device = target.device
    cache = target.new_cache(past + max(rows))
    ids = torch.randint(target.config.vocab_size, (past + max(rows),), device=device)
    positions = torch.arange(past + max(rows), device=device)
    with torch.inference_mode():
        target.run(target.embed(ids[:past]), positions[:past], cache, slice(0, None))

        def one(count: int) -> None:
            cache.truncate(past)
            here = slice(past, past + count)
            target.head(target.run(target.embed(ids[here]), positions[here], cache, slice(0, None)))

        times: dict[int, list[float]] = {count: [] for count in rows}
        for turn in range(passes + 2):
            for count in rows:
                seconds = _seconds(partial(one, count), device)
                if turn >= 2:
                    times[count].append(seconds)
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


def format_section(found: dict[str, Any], device: str) -> str:
    """The tables of one dtype and number of threads."""
    one_row_ms = next(iter(found["pass_ms"].values()))
    ceiling = found["read_bytes_per_s"] / found["weight_bytes"]
    lines = [
        "",
        f"{found['dtype']}, {device}" + (f", {found['threads']} threads" if device == "cpu" else ""),
        f"  weights {found['weight_bytes'] / 1e6:.1f} MB, read at {found['read_bytes_per_s'] / 1e9:.1f} GB/s: "
        f"at most {ceiling:.0f} tokens/s one by one; a pass of one row reaches {1e3 / one_row_ms / ceiling:.0%} of it",
        "  rows of a pass  " + "".join(f"{rows:>8}" for rows in found["pass_ms"]),
        "  milliseconds    " + "".join(f"{value:>8.2f}" for value in found["pass_ms"].values()),
        "  of one row's    " + "".join(f"{value / one_row_ms:>8.2f}" for value in found["pass_ms"].values()),
        f"  {'method':<18}{'tokens/s':>9}{'speedup, paired [95 %]':>27}{'CR':>7}"
        f"{'prefill':>9}{'draft':>8}{'verify':>8}{'overhead':>10}",
    ]
    if found["methods"]:
        first = next(iter(found["methods"].values()))
        lines.append(_method_line("vanilla", first["vanilla_tokens_per_s"], "1", 1.0, first["vanilla_shares"]))
    for name, row in found["methods"].items():
        low, high = row["interval"]
        interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        speedup = f"{row['speedup_paired']:.2f}{interval}"
        line = _method_line(name, row["tokens_per_s"], speedup, row["cr"], row["shares"])
        lines.append(line + ("" if row["equal"] else "  tokens differ from vanilla's"))
    return "\n".join(lines)


def _method_line(name: str, rate: float, speedup: str, cr: float | None, parts: dict[str, float]) -> str:
    shown = "".join(f"{parts[part]:>{width}.1%}" for part, width in zip(parts, (9, 8, 8, 10), strict=True))
    return f"  {name:<18}{rate:>9.0f}{speedup:>27}{'' if cr is None else f'{cr:.2f}':>7}{shown}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
