"""Results of other programs as pairs of servers: files of `vllm bench serve` (JSON, with or without --save-detailed)
and of SpecForge, folders of specdec_bench, which runs SPEED-Bench.

Written from their sources (vLLM 0.32; specdec_bench in NVIDIA's Model-Optimizer of August 2026; SpecForge's
bench_eagle3.py of 2026). What they do not know stays empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from bench.serve.acceptance import Acceptance, of_histogram
from bench.serve.metrics import Comparison, summarise
from bench.serve.records import SIDES, Lines, Records
from methods.errors import UserError, reading

UNKNOWN = "imported: machine, settings, prompts and whether answers are the plain server's are not in these files"
SPECFORGE = ("batch_size", "steps", "topk", "num_draft_tokens", "metrics")
VLLM = ("duration", "completed", "max_concurrency")
ACCEPTED = "spec_decode_accepted_tokens"  # in a result of vLLM's that speculated
VLLM_TIMES = {"ttft": "ttft_ms", "tpot": "token_ms", "itl": "gap_ms", "e2el": "wall_ms"}  # its names of times, and ours
SPECDEC = ("engine", "concurrency", "speculative_algorithm")
SPECDEC_TIMES = {"TTFT Time": "ttft_ms", "E2E Request Time": "wall_ms"}
CONFIGURATION, TIMING = "configuration.json", "timing.json"  # what every folder of specdec_bench has
ALIKE = ("engine", "engine_version", "model_dir", "gpu", "tp_size", "output_length", "temperature")  # of its pairs


@dataclass(frozen=True)
class _Part:
    """What was measured of one server at one level. asked: the prompts, as far as told; said: the answers' texts."""

    level: int
    wall_s: float
    tokens: float
    answers: int
    acceptance: Acceptance | None
    asked: Any = None
    said: Sequence[str] | None = None
    requests: Lines = field(default_factory=list)
    percentiles: dict[str, float] = field(default_factory=dict)  # of what is not told request by request

    def __post_init__(self) -> None:
        if not (self.tokens > 0 and self.wall_s > 0):
            raise ValueError(f"{self.tokens:g} tokens in {self.wall_s:g} s: nothing was measured")


@dataclass(frozen=True)
class _Result:
    """What a file or folder says of one server. alike: what it must share with whatever it is compared with."""

    path: Path
    engine: str
    model: str
    name: str
    parts: Sequence[_Part]
    plain: bool = False
    alike: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = (UNKNOWN,)


def is_result(path: Path) -> bool:
    """Whether a path is a folder of specdec_bench, or a file of JSON that is no line of answers.

    What cannot be read is for others to say.
    """
    try:
        found = orjson.loads((path / CONFIGURATION if path.is_dir() else path).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(found, list) or (isinstance(found, dict) and "question_id" not in found)


def import_comparisons(
    files: Sequence[Path], baseline: Sequence[Path], *, model: str = "", name: str = ""
) -> list[Comparison]:
    """Pairs of servers from result files and folders. Raises UserError naming the one that is none."""
    for paths in (files, baseline):
        _check_once(paths)
    plain, by_name, found = list[_Result](), dict[str, list[_Result]](), list[Comparison]()
    for path in baseline:
        if (result := _read(path)) is None:
            raise UserError(f"baseline: {path}: no result of vllm bench serve or specdec_bench")
        plain.append(result)
    for path in files:
        if (result := _read(path)) is None:
            with _right_form(path):
                found += _specforge(path, orjson.loads(path.read_bytes()), model)
        elif result.plain:
            plain.append(result)
        else:
            by_name.setdefault(name or result.name, []).append(result)
    if files and not found and not by_name:
        raise UserError(f"import: {files[0]}: speculative_algorithm=NONE; wanted: a result that speculates beside it")
    for label, members in by_name.items():
        with _right_form(members[0].path):
            theirs = [one for one in plain if one.alike.keys() == members[0].alike.keys()]  # of the same program
            found.append(_pair(members, theirs, model, label))
    return found


def _check_once(paths: Sequence[Path]) -> None:
    """Raises UserError for a result that is given twice: what is measured again takes other times."""
    seen: dict[tuple[bytes, ...], Path] = {}
    for path in filter(is_result, paths):
        folder = path if path.is_dir() else path.parent if path.name == CONFIGURATION else None
        files = [path] if folder is None else [folder / name for name in (CONFIGURATION, TIMING)]
        with reading(path if folder is None else files[0], "a result"):
            content = tuple(file.read_bytes() for file in files if file.is_file())
        if content in seen:
            raise UserError(f"import: {seen[content]} and {path} hold the same result; give one of them")
        seen[content] = path


@contextmanager
def _right_form(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:  # a ValueError too, and says all
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"import: {path}: a result of another form ({type(error).__name__}: {error})") from error


def _read(path: Path) -> _Result | None:
    """A result of vLLM's or of specdec_bench; None: some other program's."""
    folder = path.parent if path.name == CONFIGURATION else path
    found = orjson.loads((path / CONFIGURATION if path.is_dir() else path).read_bytes()) if is_result(path) else {}
    with _right_form(path):
        if all(key in found for key in VLLM):
            return _vllm(path, found)
        return _specdec_bench(folder, found) if all(key in found for key in SPECDEC) else None


def _comparison(path: Path, info: dict[str, Any], lines: tuple[Lines, Lines], notes: Sequence[str]) -> Comparison:
    levels = sorted({block["level"] for block in lines[1]})
    config = {"concurrency": levels, **info.pop("config", {})}
    records = Records(path, {**info, "imported": True, "config": config}, *lines, [], tuple(notes))
    return Comparison(records, summarise(records))


def _pair(ours: Sequence[_Result], theirs: Sequence[_Result], model: str, name: str) -> Comparison:
    first, requests, blocks = ours[0], list[dict[str, Any]](), list[dict[str, Any]]()
    asked: dict[tuple[int, int], Any] = {}
    texts: dict[tuple[int, int], Sequence[str]] = {}
    different = compared = 0
    counts = {side: Counter[int]() for side in SIDES}
    for side, results in zip(SIDES, (ours, theirs), strict=True):
        repeats = counts[side]
        for result in results:
            _check_alike(result, first)
            for part in result.parts:
                place = part.level, repeats[part.level]
                repeats[part.level] += 1
                if part.asked != asked.setdefault(place, part.asked) and None not in (part.asked, asked[place]):
                    raise UserError(f"import: {result.path}: other prompts than the other side's; wanted: the same "
                                    "questions, or the same seed")  # fmt: skip
                if part.said and (before := texts.setdefault(place, part.said)) is not part.said:
                    different += sum(a != b for a, b in zip(part.said, before, strict=True))
                    compared += len(before)
                where = {"level": place[0], "repeat": place[1], "block": 0, "side": side, "attempt": side}
                requests += [{**line, **where} for line in part.requests]
                blocks.append({**_block(part, **where), "percentiles": part.percentiles or None})
    notes = [*dict.fromkeys(note for result in (*ours, *theirs) for note in result.notes)]
    if compared:
        unsure = "near ties" if first.alike else "near ties, and whether answers were greedy,"
        notes.append(
            f"{different} of {compared} answers have another text than the plain server's ({unsure} cannot be told)"
        )
    for level in dict.fromkeys([*counts[SIDES[0]], *counts[SIDES[1]]] if theirs else ()):
        many, few = sorted((counts[side][level] for side in SIDES), reverse=True)
        if many > few:
            notes.append(f"{level} at a time: of {many} results of one side, the last {many - few} have no partner and "
                         "are left out")  # fmt: skip
    known = {"engine": first.engine, "version": first.alike.get("engine_version")}
    config = {"temperature": first.alike.get("temperature"), "server": {"hardware": first.alike.get("gpu")}}
    info = {"model": model or first.model, "method": name, "servers": dict.fromkeys(SIDES, known), "config": config}
    return _comparison(first.path, info, (requests, blocks), notes)


def _check_alike(one: _Result, other: _Result) -> None:
    for key in {**one.alike, **other.alike}:
        if one.alike.get(key) != other.alike.get(key):
            raise UserError(f"import: {one.path}: {key}={one.alike.get(key)}; {other.path} has "
                            f"{key}={other.alike.get(key)}; wanted: the same")  # fmt: skip


def _level(path: Path, key: str, level: Any) -> int:
    if type(level) is not int:
        raise UserError(f"import: {path}: {key}={level}; a rate of requests is no number of them at a time")
    return level


def _vllm(path: Path, result: dict[str, Any]) -> _Result:
    requests = [*_vllm_requests(result)]
    percentiles: dict[str, float] = {}
    for theirs, ours in VLLM_TIMES.items() if not requests else ():
        told = {50: f"median_{theirs}_ms", 90: f"p90_{theirs}_ms", 99: f"p99_{theirs}_ms"}
        percentiles |= {f"{ours}_p{p}": float(result[name]) for p, name in told.items() if name in result}
    part = _Part(_level(path, "max_concurrency", result["max_concurrency"]), result["duration"],
                 result["total_output_tokens"], result["completed"], _vllm_acceptance(result),
                 result.get("input_lens"), result.get("generated_texts"), requests, percentiles)  # fmt: skip
    name, prompts = str(result.get("label") or "vllm bench serve"), result.get("num_prompts", 0)
    notes, failed = [UNKNOWN], prompts - part.answers
    if failed > 0:
        counts = "; its counts of acceptance have them too and are in no CR" if ACCEPTED in result else ""
        notes.append(f"{path}: {failed} of {prompts} requests failed{counts}")
    return _Result(path, "vllm", str(result.get("model_id") or "unknown"), name, [part], notes=tuple(notes))


def _vllm_requests(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each request, where the result was saved with --save-detailed."""
    columns = ("output_lens", "ttfts", "itls", "errors", "generated_texts")
    if not all(name in result for name in columns[:3]):
        return
    rows = zip(*(result.get(name) or [""] * len(result["ttfts"]) for name in columns), strict=True)
    for number, (tokens, ttft_s, gaps_s, error, text) in enumerate(rows):
        line = {"question_id": number, "category": "imported", "subtask": "imported", "turn": 0}
        if error or not tokens:
            yield {**line, "status": "failed", "error": error or "no tokens"}
            continue
        times_s = [*accumulate([ttft_s, *gaps_s])]
        times = {"wall_s": times_s[-1], "ttft_s": ttft_s, "times_s": times_s}
        yield {**line, **times, "status": "ok", "new_tokens": tokens, "text": text}


def _vllm_acceptance(result: Mapping[str, Any]) -> Acceptance | None:
    if ACCEPTED not in result or result["completed"] < result.get("num_prompts", 0):
        return None  # its counts have the failed requests too
    drafts, rates = result["spec_decode_num_drafts"], result.get("spec_decode_per_position_acceptance_rates")
    deeper = tuple(round(rate * drafts) for rate in rates) if rates else None
    return Acceptance(result[ACCEPTED], result["spec_decode_draft_tokens"], deeper=deeper, drafts=drafts)


def _specdec_bench(folder: Path, config: dict[str, Any]) -> _Result:
    """A folder of its run.py; one that was run again into the same folder has as many repeats."""
    measured = [_listed(folder / name) for name in (TIMING, "acceptance_rate.json")]
    asked, said = _specdec_answers(folder)
    level = _level(folder, "concurrency", config["concurrency"])
    parts = [_specdec_part(level, times, lengths, asked) for times, lengths in zip(*measured, strict=True)]
    sampling = (config.get("runtime_params") or {}).get("sampling_kwargs") or {}
    temperature = config.get("temperature")
    alike = {key: config.get(key) for key in ALIKE}
    alike |= {"temperature": sampling.get("temperature", 0) if temperature is None else temperature}
    if parts and not alike["temperature"]:
        parts[-1] = replace(parts[-1], said=said)  # the texts are the last repeat's
    model = config.get("huggingface_model_id") or config.get("model_dir") or "unknown"
    algorithm, block = str(config["speculative_algorithm"]), config.get("block_size")
    name = f"{algorithm.lower()}, " + (f"block size {block}" if block else f"draft length {config.get('draft_length')}")
    notes = (
        "imported: single requests, and where answers part from the plain server's, are not in these files",
        "CR counts what the engine streamed at a time: the first token is the prefill's, passes whose tokens came "
        "together are one, and the end token's is none",
    )
    return _Result(folder, str(config["engine"]).lower(), str(model), name, parts, algorithm == "NONE", alike, notes)


def _listed(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"import: {file}: no such file; wanted: a folder that specdec_bench's run.py has finished")
    return list(orjson.loads(file.read_bytes()))


def _specdec_answers(folder: Path) -> tuple[Any, list[str] | None]:
    """Everything asked, and everything said; None where this was not kept."""
    files = [*folder.glob("*responses.jsonl")]
    lines = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    if len(files) != 1:
        return None, None
    return [line["turns"] for line in lines], [text for line in lines for text in line["choices"][0]["turns"]]


def _specdec_part(level: int, times: Mapping[str, Any], lengths: Mapping[str, Any], asked: Any) -> _Part:
    """Its acceptance lengths are the numbers of tokens that were streamed at a time, the prefill's token included."""
    counts = {int(length): count for length, count in lengths["Acceptance_Length_Histogram"].items()}
    tokens = sum(length * count for length, count in counts.items())
    turns = round(tokens / float(times["Number of Output Tokens"]["mean"]))
    accepted = [counts.get(length, 0) for length in range(1, max(counts) + 1)]
    accepted[0] -= turns
    acceptance = of_histogram(accepted, steps=sum(accepted)) if accepted[0] >= 0 else None
    percentiles = {f"{ours}_p50": 1e3 * float(times[name]["quantiles"]["0.5"]) for name, ours in SPECDEC_TIMES.items()}
    return _Part(level, tokens / times["Output TPS"], tokens, turns, acceptance, asked, percentiles=percentiles)


def _block(part: _Part, **where: Any) -> dict[str, Any]:
    acceptance = asdict(part.acceptance) if part.acceptance else None
    return {**where, "wall_s": part.wall_s, "acceptance": acceptance, "tokens": part.tokens, "answers": part.answers}


def _specforge(path: Path, result: Any, model: str) -> Iterator[Comparison]:
    """A pair for each setting with draft steps; the settings with none are its plain server."""
    if not isinstance(result, dict):
        raise UserError(f"import: {path}: no result in itself; of specdec_bench, give the folder")
    found = {name: rows for name, rows in result.items() if name != "model"}
    rows: list[Any] = [row for listed in found.values() for row in (listed if isinstance(listed, list) else [None])]
    if not rows or not all(isinstance(row, dict) and row.keys() >= {*SPECFORGE} for row in rows):
        raise UserError(f"import: {path}: neither a result of vllm bench serve, specdec_bench nor SpecForge")
    settings = dict.fromkeys((row["steps"], row["topk"], row["num_draft_tokens"]) for row in rows if row["steps"])
    for setting in settings:
        blocks: Lines = []
        for number, name in enumerate(found):
            for row in found[name]:
                mine = (row["steps"], row["topk"], row["num_draft_tokens"])
                if mine != setting and row["steps"]:
                    continue
                side = SIDES[0] if mine == setting else SIDES[1]
                for repeat, one in enumerate(row["metrics"]):
                    tokens, answers = one["output_throughput"] * one["latency"], one["num_questions"]
                    steps = Acceptance(steps=round(tokens / one["accept_length"])) if side == SIDES[0] else None
                    part = _Part(row["batch_size"], one["latency"], round(tokens), answers, steps)
                    where = {"level": part.level, "repeat": repeat, "block": number, "side": side, "attempt": side}
                    blocks.append(_block(part, **where))
        label = "steps {}, topk {}, tokens {}".format(*setting)
        draft = str(result.get("model") or "unknown")
        servers = {side: {"engine": "sglang"} for side in SIDES}
        notes = [UNKNOWN, "CR takes each question for one answer; of several turns, it is a little too high"]
        yield _comparison(path, {"model": model or draft, "method": label, "servers": servers}, ([], blocks), notes)
