"""python -m bench.speed [model=joey] [key=value]: how fast is the engine, beside transformers and what is possible?

Everything that is compared is timed in turns in one process. For each dtype and number of threads: what memory gives,
what one target pass of n rows costs, each method against vanilla with its 95 % interval, where the time went, and
what a card said of both sides.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import again, configured
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.config import Conf
    from bench.settings import Run, Speed

USAGE = """usage: python -m bench.speed [model=NAME] [methods=[NAME,...]] [dtypes=[NAME,...]] [key=value ...]
       method.KEY=VALUE     for each of the methods that has this key, such as method.checkpoint=FOLDER
models:  {model}
methods: {method}
keys and their defaults: conf/speed.yaml, conf/model/NAME.yaml"""


@configured(again, USAGE)
def main(conf: Conf, overrides: list[str]) -> int:
    """Measure and print; the raw values go to <results_dir>/speed/. Returns the exit status: 0, or 2 for bad input."""
    import torch

    from bench import environment
    from bench.assembly import DEFAULT_THREADS, fitting, pick_engine, rehearse, target_folder
    from bench.files import make_folder, replace_text
    from bench.settings import Run, Speed
    from bench.speed import peer
    from bench.types import settings_of
    from methods.engine.checkpoint import pick_device

    of_methods = [text for text in overrides if text.lstrip("+").startswith("method.")]
    speed = settings_of(Speed, conf.compose("speed", [text for text in overrides if text not in of_methods]).values)
    of_model = [text for text in overrides if text.startswith("model")]
    runs, taken = [], set()
    for name in speed.listed("methods"):
        given = [f"method={name}", f"repeats={speed.repeats}", *of_model]
        composed = conf.compose("config", given)
        if own := [text for text in of_methods if re.split(r"[.=]", text)[1] in composed.values["method"]]:
            composed = conf.compose("config", [*given, *own])
        taken |= set(own)
        runs.append(Run.of(composed))
    for text in of_methods:
        if text not in taken:
            raise UserError(f"{text.partition('=')[0]}: none of methods={speed.listed('methods')} has this key")
    models = [replace(speed.model, dtype=dtype) for dtype in speed.listed("dtypes")]
    for run in runs:
        for model in models:
            rehearse(replace(run, model=model), tokenizer=model.weights != "random")
    results = make_folder(speed.results_dir)
    folder = target_folder(speed.model)
    device = pick_device(speed.model.device)
    file = peer.weights_file(folder, results) if speed.llama_cpp else None
    sections = []
    for model in models:
        for threads in speed.listed("threads") if device.type == "cpu" else [None]:
            torch.set_num_threads(threads or DEFAULT_THREADS)
            with fitting(model, folder):
                found = section(speed, [replace(run, model=model) for run in runs], folder, file)
            found |= {"threads": torch.get_num_threads(), "engine": pick_engine(speed.engine, device)}
            sections.append(found)
            print(format_section(found, str(device), demonstration=model.built_in), flush=True)
    written = results / "speed" / f"{speed.model.label}.json"
    record = {
        "config": asdict(speed),
        "model": speed.model.label,
        **environment.describe(device.type, DEFAULT_THREADS),
        "sections": sections,
    }
    _keep_older(written)
    replace_text(written, json.dumps(record, indent=1) + "\n", "results_dir")
    print(f"raw values in {written}")
    return 0


def _keep_older(written: Path) -> None:
    """Give what an earlier measuring wrote a name of its own. Raises UserError where the folder does not let it."""
    if not written.exists():
        return
    older = next(file for n in count(1) if not (file := written.with_name(f"{written.stem}-{n}.json")).exists())
    try:
        written.rename(older)
    except OSError as error:
        raise UserError(f"results_dir: {written} cannot be renamed ({error.strerror}), and is not replaced") from error
    print(f"what was there is now {older}")


def section(speed: Speed, runs: Sequence[Run], folder: Path, file: Path | None) -> dict[str, Any]:
    """Everything measured for one dtype and the threads that are set now; runs: each method's, with that dtype.

    file: the weights for llama.cpp, which is measured too.
    """
    from bench.assembly import Parts, build, load_target, on_engine
    from bench.speed import peer
    from bench.speed.engine import PASSES, make_prompts, memory_facts, of_device, paired, pass_costs, summarise, turn

    loaded = load_target(runs[0].model, folder, seed=0)
    if (longest := speed.past + max(speed.listed("rows"))) > loaded.config.context:
        raise UserError(f"past={speed.past}: rows make it {longest}, the model's context is {loaded.config.context}")
    target = on_engine(speed.engine, loaded)
    prompts = make_prompts(speed, folder, target)
    found: dict[str, Any] = {
        **memory_facts(target),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": [str(kernel) for kernel in target.kernels],
        "past": speed.past,
        "pass_ms": pass_costs(target, speed.listed("rows"), speed.past, speed.passes),
        "methods": {},
    }
    missed = {PASSES: target.unprepared}
    for run in runs:
        # A fixed engine is each method's own: no storage, capture or count of those before is in its figures.
        target = on_engine(speed.engine, loaded)
        gc.collect()
        sides = build(Parts.gather(run, rehearsed=True), target)
        assert sides.baseline is not None
        method, vanilla = (
            turn(side, target, speed.max_new_tokens, sides.gauge, name)
            for name, side in (("method", sides.method), ("baseline", sides.baseline))
        )
        pairs = list(paired(method, vanilla, prompts, speed.repeats, target))
        row = {"settings": run.method, **summarise(pairs), **of_device(pairs, prompts, found)}
        found["methods"][run.method_name] = row
        found["card"] = sides.gauge.facts()
        missed[run.method_name] = target.unprepared
        del sides, method, vanilla
    found["uncaptured"] = {name: why for name, why in missed.items() if why}
    if file is not None:
        found["llama_cpp"] = peer.measured(speed, target, prompts, file)
    return found


def format_section(found: dict[str, Any], device: str, *, demonstration: bool) -> str:
    """The tables of one dtype and number of threads, and what a reader must know of them.

    demonstration: of a model so small that operations, not memory, take its time; a slow baseline is not said.
    """
    one_row_ms = next(iter(found["pass_ms"].values()))
    past = found["past"] * found["kv_bytes_per_token"]
    ceiling = found["read_bytes_per_s"] / (found["step_bytes"] + past)
    shares = [row["vanilla_memory_share"] for row in found["methods"].values()][:1]
    decoding = "".join(f", vanilla's decoding {share:.0%}" for share in shares if share is not None)
    lines = [
        "",
        *[f"attention, {kernel}" for kernel in found["attention"]],
        f"{found['dtype']}, {device}" + (f", {found['threads']} threads" if device == "cpu" else ""),
        f"  weights {found['step_bytes'] / 1e6:.1f} MB and cache {past / 1e6:.1f} MB, "
        f"read at {found['read_bytes_per_s'] / 1e9:.1f} GB/s: at most {ceiling:.0f} tokens/s one by one",
        f"  of what memory gives, a pass of one row reaches {1e3 / one_row_ms / ceiling:.0%}{decoding}",
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
        speedup = _with_interval(row["speedup_paired"], row["interval"])
        line = _method_line(name, row["tokens_per_s"], speedup, row["cr"], row["shares"])
        lines.append(line + ("" if row["equal"] else "  tokens differ from vanilla's"))
    if "llama_cpp" in found:
        lines.append(_llama_cpp_line(found["llama_cpp"]))
    return "\n".join([*lines, *_card_lines(found), *_warnings(found, demonstration)])


def _card_lines(found: dict[str, Any]) -> list[str]:
    """What the card said of each side's turns; vanilla's are those beside the first method. None without a card."""
    sides = [("vanilla", row["readings"]["vanilla"]) for row in found["methods"].values()][:1]
    sides += [(name, row["readings"]["method"]) for name, row in found["methods"].items()]
    if all(value is None for _, row in sides for value in row.values()):
        return []
    from bench.words import show

    limit = (found["card"] or {}).get("power_limit_milliwatts")
    head = "of the card" + (f", {limit / 1e3:.0f} W at most" if limit else "")
    lines = [f"  {head:<27}{'peak GB':>9}{'J/token':>9}{'SM MHz':>8}{'°C':>6}"]
    for name, row in sides:
        peak = row["peak_memory_bytes"] and row["peak_memory_bytes"] / 1e9
        clock, heat = show(row["sm_mhz"], 0), show(row["temperature_c"], 0)
        lines.append(f"  {name:<27}{show(peak):>9}{show(row['joules_per_token']):>9}{clock:>8}{heat:>6}")
    return lines


def _warnings(found: dict[str, Any], demonstration: bool) -> list[str]:
    """What a reader must know of a method's figures."""
    from bench.words import slow_baseline, throttled

    lines = [f"! {name}: {why}" for name, why in found["uncaptured"].items()]
    for name, row in found["methods"].items():
        slow = [] if demonstration or name == "vanilla" else slow_baseline(row["vanilla_memory_share"])
        lines += [f"! {name}: {text}" for text in [*slow, *throttled(row["throttled"])]]
    return lines


def _method_line(name: str, rate: float, speedup: str, cr: float | None, parts: dict[str, float]) -> str:
    shown = "".join(f"{parts[part]:>{width}.1%}" for part, width in zip(parts, (9, 8, 8, 10), strict=True))
    return f"  {name:<18}{rate:>9.0f}{speedup:>27}{'' if cr is None else f'{cr:.2f}':>7}{shown}"


def _llama_cpp_line(row: dict[str, Any] | None) -> str:
    if row is None:
        return f"  {'llama.cpp':<18}   not measured: float32 on a CPU alone is"
    return (
        f"  {'llama.cpp':<18}{row['tokens_per_s']:>9.1f} after prefill; vanilla {row['vanilla_tokens_per_s']:.1f}, "
        f"over it {_with_interval(row['vanilla_over_it'], row['interval'])}; "
        f"{row['equal_tokens']} of {row['tokens']} tokens equal"
    )


def _with_interval(ratio: float, interval: list[float | None]) -> str:
    low, high = interval
    return f"{ratio:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
