"""python -m bench.speed [model=joey] [key=value]: how fast is the engine, beside transformers and what is possible?

Everything that is compared is timed in turns in one process. Three tables for each dtype and number of threads:
what one target pass of n rows costs, each method against vanilla with its 95 % interval, and where the time went.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def measure(arguments: Sequence[str]) -> None:
    """Run the whole measurement. Raises UserError for a mistake in the configuration."""
    import torch

    from bench import environment
    from bench.config import compose_config, locate, plain
    from bench.files import make_folder
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
    from bench.speed.engine import make_prompts, paired, pass_costs, read_bandwidth, summarise

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
