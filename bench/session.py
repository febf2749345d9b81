"""One run: load, warm up, ask every question of both sides, record, summarise."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from tqdm import tqdm

from bench import environment
from bench.chat import Chat, Message, chat_files
from bench.config import ROOT, check_settings, check_type, locate
from bench.digests import sha256
from bench.fidelity import NEAR_TIE, Fidelity, compare
from bench.files import make_folder
from bench.measure import Generator, Timed, timed_generation
from bench.questions import Question, find_questions, read_questions, select
from bench.records import Place, RunDirectory, Turn
from bench.words import format_table, summarise_run
from methods.decoder import Decoder
from methods.engine.checkpoint import (
    empty_weights,
    file_hashes,
    load_model,
    pick_device,
    pick_dtype,
    read_config,
    resolve,
)
from methods.engine.llama import Llama
from methods.errors import NonFiniteLogits, UserError, nearest
from methods.rest import FILE_NAME as DATASTORE
from methods.vanilla import Vanilla

DEFAULT_THREADS = torch.get_num_threads()  # before a run has set another number


@dataclass(frozen=True)
class Sides:
    """What is compared: the method and, unless it was switched off, vanilla on the same weights."""

    target: Llama
    method: Generator
    baseline: Generator | None
    extra_parameters: int
    datastore_bytes: int | None


@dataclass
class Tally:
    """Running figures for the progress bar, over the turns of this process."""

    ratios: list[float] = field(default_factory=list)
    emitted: int = 0
    steps: int = 0

    def add(self, answer: Timed, baseline: Timed | None) -> None:
        self.steps += len(answer.generation.steps)
        self.emitted += sum(step.emitted for step in answer.generation.steps)
        if baseline is not None:
            ours, theirs = (len(timed.generation.tokens) / timed.wall_s for timed in (answer, baseline))
            self.ratios.append(ours / theirs)

    def __str__(self) -> str:
        speedup = f"speedup {sum(self.ratios) / len(self.ratios):.2f} " if self.ratios else ""
        return speedup + (f"CR {self.emitted / self.steps:.2f}" if self.steps else "")


class TurnFailed(Exception):
    """A turn gave no usable result; status is "failed" or "skipped"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def run(config: dict[str, Any], command: str) -> int:
    """Measure one configuration (conf/config.yaml, resolved). Returns 0, or 1 when a turn failed or was not lossless.

    Raises UserError for a mistake in configuration or input.
    """
    config = _checked(config)
    asked = find_questions(config["data"]["path"], built_in=config["model"]["built_in"])
    questions = select(
        read_questions(asked),
        subtasks=config["task"]["subtasks"],
        limit=config["limit"],
        question_ids=config["question_ids"],
        shard=config["shard"],
    )
    torch.set_num_threads(config["threads"] or DEFAULT_THREADS)
    model, root = config["model"], Path(config["results_dir"])
    if not RunDirectory.known(root, config):
        rehearse(config)
    folder = resolve(locate(model["path"]), model["revision"], weights=model["weights"] != "random")
    info = {**_information(config, folder, command), "questions_sha256": sha256(asked)}
    directory = RunDirectory.open(root, config, info, resume=config["resume"])
    try:
        if directory.notice:
            print(directory.notice, file=sys.stderr)
        places = [Place(question, repeat) for repeat in range(config["repeats"]) for question in questions]
        waiting = [place for place in places if place.key not in directory.done]
        if waiting:
            _ask(config, folder, directory, info, questions, waiting)
        return _finish(directory)
    finally:
        directory.close()


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a single question id as a list. Raises UserError for values out of range."""
    for key, least in {"repeats": 1, "max_new_tokens": 1, "warmup_turns": 0}.items():
        if config[key] < least:
            raise UserError(f"{key}={config[key]}: must be an integer of at least {least}")
    check_type("threads", config["threads"], int | None)
    if config["threads"] is not None and config["threads"] < 1:
        raise UserError(f"threads={config['threads']}: must be at least 1, or null for all")
    weights = config["model"]["weights"]
    if weights not in ("checkpoint", "random"):
        raise UserError(f"model.weights={weights} is unknown; {nearest(weights, ('checkpoint', 'random'))}")
    if config["baseline"] not in ("paired", "none"):
        raise UserError(f"baseline={config['baseline']}: unknown; {nearest(config['baseline'], ('paired', 'none'))}")
    make_folder(config["results_dir"])
    ids = config["question_ids"]
    return {**config, "question_ids": [ids] if isinstance(ids, int) else ids}


def _information(config: Mapping[str, Any], folder: Path, command: str) -> dict[str, Any]:
    """What run.json says of this run before anything is loaded."""
    model = config["model"]
    device = pick_device(model["device"])
    git = environment.git_state(ROOT)
    return {
        "config": config,
        "command": command,
        "model": model["name"],
        "method": config["method_name"],
        "demonstration": model["built_in"],
        "dtype": str(pick_dtype(model["dtype"], device, read_config(folder))).removeprefix("torch."),
        "git": git,
        "commit": git["commit"],
        "checkpoint_sha256": _hashes(config, folder),
        "chat_sha256": {file.name: sha256(file) for file in chat_files(folder, model["chat_template"])},
        **environment.describe(device.type, torch.get_num_threads()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _hashes(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Hashes of the target's files, and of all that the method draws on: checkpoint, datastore, calibration."""
    hashes = {f"target/{name}": digest for name, digest in file_hashes(folder, sha256).items()}
    method = config["method"]
    if method.get("checkpoint"):
        draft = resolve(locate(method["checkpoint"]), key="method.checkpoint")
        hashes |= {f"draft/{name}": digest for name, digest in file_hashes(draft, sha256).items()}
    for given in (method.get("datastore"), method.get("calibration")):
        file = Path(locate(given)).expanduser() if given else folder
        file = file / DATASTORE if given and file.is_dir() else file
        if file.is_file():
            hashes[f"draft/{file.name}"] = sha256(file)
    return hashes


def rehearse(config: Mapping[str, Any], *, tokenizer: bool = True) -> None:
    """Raises UserError for what is wrong with model, tokenizer or method, as far as it shows without the weights.

    They may be a long download away. The sides are put on a target that has the right shapes and no storage; a method
    that asks for values of its weights cannot be made here, and is left to `build`.
    """
    model = config["model"]
    check_settings(config["method"], "method")
    folder = resolve(locate(model["path"]), model["revision"], weights=False)
    target = _hollow(model, folder)
    if tokenizer:
        Chat(folder, model["chat_template"])
    with suppress(InstantiationException):
        _sides(config, target)


def _hollow(model: Mapping[str, Any], folder: Path) -> Llama:
    """The target without storage."""
    shape = read_config(folder)
    dtype = pick_dtype(model["dtype"], pick_device(model["device"]), shape)
    return Llama(shape, empty_weights(shape, dtype, torch.device("meta")))


def load_target(model: Mapping[str, Any], folder: Path, *, seed: int) -> Llama:
    """The target as conf/model describes it, ready to decode."""
    target = load_model(folder, dtype=model["dtype"], device=model["device"], weights=model["weights"], seed=seed)
    target.pack()
    return target


def build(config: Mapping[str, Any], folder: Path, target: Llama | None = None) -> Sides:
    """Put the method and the baseline on the target, which is loaded unless it is given.

    Raises UserError when they cannot be made, or do not fit into memory.
    """
    model = config["model"]
    with fitting(model, folder):
        try:
            return _sides(config, target or load_target(model, folder, seed=config["seed"]))
        except InstantiationException as error:
            cause = error.__cause__ or error
            name = config["method"]["_target_"]
            raise UserError(f"method: {name} cannot be made ({type(cause).__name__}: {_first_line(cause)})") from error


@contextmanager
def fitting(model: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """Raises UserError for what does not fit into memory, naming the keys that decide how much is needed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        size = _hollow(model, folder).weight_bytes / 1e9
        raise UserError(
            f"model.path={model['path']}, model.dtype={model['dtype']}: out of memory, the weights alone take "
            f"{size:.2g} GB ({_first_line(error)}); a smaller model, dtype or model.context needs less"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _sides(config: Mapping[str, Any], target: Llama) -> Sides:
    settings = {"context": config["model"]["context"], "temperature": config["temperature"], "seed": config["seed"]}
    drafter = _method(config["method"], target)
    # Another library's generate is measured as it is; a method of ours is put into the loop.
    method = drafter if hasattr(drafter, "generate") else Decoder(target, drafter, **settings)
    baseline = Decoder(target, Vanilla(target), **settings) if config["baseline"] == "paired" else None
    datastore_bytes = getattr(drafter, "datastore_bytes", None)
    return Sides(target, method, baseline, drafter.extra_parameters, datastore_bytes)


def _method(settings: Mapping[str, Any], target: Llama) -> Any:
    """What the method's `_target_` makes of its keyword arguments."""
    try:
        return instantiate({key: locate(value) for key, value in settings.items()}, target=target)
    except InstantiationException as error:
        cause = error.__cause__  # Hydra wraps whatever a constructor raises
        if cause is not None and (isinstance(cause, UserError) or _out_of_memory(cause)):
            raise cause from None
        raise


def _ask(
    config: Mapping[str, Any],
    folder: Path,
    directory: RunDirectory,
    info: dict[str, Any],
    questions: list[Question],
    waiting: list[Place],
) -> None:
    chat = Chat(folder, config["model"]["chat_template"])
    sides = build(config, folder)
    extra = {"extra_parameters": sides.extra_parameters, "datastore_bytes": sides.datastore_bytes}
    directory.write_info({**info, **extra, "weight_bytes": sides.target.weight_bytes})
    _warm_up(config, sides, chat, questions)
    tally = Tally()
    with tqdm(waiting, unit="question", desc=f"{info['model']} {info['method']}", disable=None) as bar:
        for number, place in enumerate(bar):
            conversation = Conversation(config, sides, chat, method_first=number % 2 == 0)
            answer_id, stamp = uuid.uuid4().hex[:22], time.time()
            envelope = {"answer_id": answer_id, "model_id": f"{info['model']}-{info['method']}", "tstamp": stamp}
            try:
                for turn in place.question.turns:
                    conversation.take(turn)
            except TurnFailed as error:
                turn_number = len(conversation.answers)
                directory.write_failure(place, envelope, turn_number, error.status, str(error))
                tqdm.write(f"question {place.question.question_id} turn {turn_number} {error.status}: {error}")
                continue
            baseline = conversation.baselines if sides.baseline else None
            directory.write(place, envelope, conversation.answers, baseline)
            for index, answer in enumerate(conversation.answers):
                tally.add(answer.timed, baseline[index].timed if baseline else None)
            bar.set_postfix_str(str(tally), refresh=False)


def _warm_up(config: Mapping[str, Any], sides: Sides, chat: Chat, questions: list[Question]) -> None:
    """Unrecorded turns for both sides, so that no recorded one pays for the first use of anything."""
    for turn in range(config["warmup_turns"]):
        ids = chat.prompt_ids([Message("user", questions[turn % len(questions)].turns[0])])
        for name, side in (("method", sides.method), ("baseline", sides.baseline)):
            with suppress(TurnFailed):  # the recorded turns will say so, one by one
                if side is not None:
                    _generated(name, side, ids, config["max_new_tokens"], sides.target)


def _generated(name: str, side: Generator, ids: list[int], max_new_tokens: int, target: Llama) -> Timed:
    """One generation of one side. Raises TurnFailed when the prompt does not fit the model, or something goes wrong."""
    if not ids:
        raise TurnFailed("failed", "the prompt has no tokens")
    if max(ids) >= target.config.vocab_size:
        known = f"the model's vocabulary of {target.config.vocab_size}"
        raise TurnFailed("failed", f"token {max(ids)} of the prompt is beyond {known}: is this its tokenizer?")
    if len(ids) >= side.context:
        raise TurnFailed("skipped", f"prompt of {len(ids)} tokens leaves no room in a context of {side.context}")
    try:
        with _turn_fits_memory(name):
            return timed_generation(side, ids, max_new_tokens, target.device)
    except NonFiniteLogits as error:
        raise TurnFailed("failed", f"{name}: {error}") from error


@contextmanager
def _turn_fits_memory(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise TurnFailed("failed", f"{name}: out of memory ({_first_line(error)})") from error


class Conversation:
    """One question's turns, put to both sides with the same prompt ids."""

    def __init__(self, config: Mapping[str, Any], sides: Sides, chat: Chat, *, method_first: bool) -> None:
        self.config, self.sides, self.chat, self.method_first = config, sides, chat, method_first
        self.messages: list[Message] = []
        self.answers: list[Turn] = []
        self.baselines: list[Turn] = []

    def take(self, text: str) -> None:
        """Ask the next turn; its prompt holds what the method answered before. Raises TurnFailed."""
        self.messages.append(Message("user", text))
        try:
            ids = self.chat.prompt_ids(self.messages)
        except UserError as error:  # a template may dislike one conversation only
            raise TurnFailed("failed", str(error)) from error
        timed = dict(self._timed(ids))
        answer, baseline = timed["method"], timed.get("baseline")
        self.messages.append(Message("assistant", self._text(answer)))
        self.answers.append(Turn(tuple(ids), self._text(answer), answer, self._fidelity(ids, answer, baseline)))
        if baseline is not None:
            self.baselines.append(Turn(tuple(ids), self._text(baseline), baseline))
        self.method_first = not self.method_first

    def _timed(self, ids: list[int]) -> Iterator[tuple[str, Timed]]:
        order = [("method", self.sides.method), ("baseline", self.sides.baseline)]
        for name, side in order if self.method_first else reversed(order):
            if side is not None:
                yield name, _generated(name, side, ids, self.config["max_new_tokens"], self.sides.target)

    def _text(self, timed: Timed) -> str:
        return self.chat.decode(timed.generation.tokens)

    def _fidelity(self, ids: list[int], answer: Timed, baseline: Timed | None) -> Fidelity | None:
        if baseline is None or self.config["temperature"] > 0:
            return None
        target, tokens = self.sides.target, baseline.generation.tokens
        dtype = str(target.dtype).removeprefix("torch.")
        with _turn_fits_memory("fidelity"):
            return compare(
                answer.generation.tokens,
                tokens,
                margin=lambda position: top_two_margin(target, [*ids, *tokens[:position]]),
                tolerance=NEAR_TIE[dtype],
            )


@torch.inference_mode()
def top_two_margin(target: Llama, tokens: list[int]) -> float:
    """How far apart the target's two best logits are after `tokens`."""
    ids = torch.tensor(tokens, device=target.device)
    positions = torch.arange(len(tokens), device=target.device)
    hidden = target.run(target.embed(ids), positions, None, slice(0, None))[-1:]
    best, second = target.head(hidden)[0].float().topk(2).values.tolist()
    return best - second


def _finish(directory: RunDirectory) -> int:
    """Write metrics.json, print the table, and say whether every turn is lossless and none failed."""
    metrics = summarise_run(directory.folder)
    directory.write_metrics(metrics)
    print(format_table(metrics))
    print(f"recorded in {directory.folder}")
    return 1 if metrics["failed_questions"] or metrics["overall"]["mismatch"] else 0
