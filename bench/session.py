"""One run: ask every question of both sides, record, summarise."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.assembly import DEFAULT_THREADS, Parts, Sides, build, out_of_memory
from bench.chat import Chat, Message
from bench.digests import sha256
from bench.fidelity import NEAR_TIE, Fidelity, compare
from bench.files import make_folder
from bench.measure import Generator, Timed, timed_generation
from bench.questions.choice import chosen
from bench.questions.formats import Question
from bench.questions.sets import find
from bench.records.directory import RunDirectory
from bench.records.frame import read_run
from bench.records.lines import Place, Turn
from bench.settings import Run
from bench.speed.engine import memory_facts
from bench.words import format_table, summary
from methods.engine.llama import Llama
from methods.errors import NonFiniteLogits, UserError, first_line
from methods.sampling import Sampler


@dataclass(frozen=True)
class Outcome:
    """How a run ended and where its records are. status: 0, or 1 when a turn failed or was not lossless."""

    status: int
    folder: Path


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


def run(settings: Run, command: str) -> Outcome:
    """Measure one configuration. Raises UserError for a mistake in configuration or input."""
    with _results(settings.results_dir) as root:
        return _recorded(settings, command, root)


@contextmanager
def _results(path: str) -> Iterator[Path]:
    """The results folder. One that was made for a run which left nothing in it goes again."""
    new, root = not os.path.exists(path), make_folder(path)
    try:
        yield root
    finally:
        if new:
            with suppress(OSError):  # it is not empty
                root.rmdir()


def _recorded(settings: Run, command: str, root: Path) -> Outcome:
    config = settings.record()
    asked, notes = find(settings.questions, settings.data.path), list[str]()
    questions = chosen(settings, asked, notes)
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    parts = Parts.gather(settings, rehearsed=RunDirectory.known(root, config))
    info = {**parts.information(command), "questions_file": str(asked), "questions_sha256": sha256(asked)}
    directory = RunDirectory.open(root, config, info, resume=settings.resume)
    try:
        for note in filter(None, [*notes, directory.notice]):
            print(note, file=sys.stderr)
        places = [Place(question, repeat) for repeat in range(settings.repeats) for question in questions]
        waiting = [place for place in places if place.key not in directory.done]
        if waiting:
            _ask(parts, directory, info, questions, waiting)
        return _finish(directory)
    finally:
        directory.close()


def _ask(
    parts: Parts, directory: RunDirectory, info: dict[str, Any], questions: list[Question], waiting: list[Place]
) -> None:
    settings = parts.settings
    chat = Chat(parts.folder, *settings.model.chat)
    sides = build(parts)
    if sides.carries_over and directory.done:
        raise UserError(
            f"{sides.carries_over}: {directory.folder} stopped halfway, and what its questions taught is gone; "
            "resume=false starts anew"
        )
    extra = {"extra_parameters": sides.extra_parameters, "datastore_bytes": sides.datastore_bytes}
    kernels = {"attention": [str(kernel) for kernel in sides.target.kernels]}
    card = {"card": sides.gauge.facts()}
    directory.write_info({**info, **extra, **kernels, **card, **memory_facts(sides.target)})
    for kernel in sides.target.kernels:
        if kernel.lacking:
            print(f"attention, {kernel}", file=sys.stderr)
    _warm_up(settings, sides, chat, questions)
    tally = Tally()
    with tqdm(waiting, unit="question", desc=f"{info['model']} {info['method']}", disable=None) as bar:
        for number, place in enumerate(bar):
            conversation = Conversation(settings, sides, chat, method_first=number % 2 == 0)
            answer_id, stamp = uuid.uuid4().hex[:22], time.time()
            envelope = {"answer_id": answer_id, "model_id": f"{info['model']}-{info['method']}", "tstamp": stamp}
            try:
                conversation.messages.extend(place.question.opening)
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
    if missed := sides.target.unprepared:
        print(missed, file=sys.stderr)


def _warm_up(settings: Run, sides: Sides, chat: Chat, questions: list[Question]) -> None:
    """Unrecorded turns for both sides, so that no recorded one pays for the first use of anything."""
    with sides.target.preparing():
        for turn in range(settings.warmup_turns):
            question = questions[turn % len(questions)]
            ids = chat.prompt_ids([*question.opening, Message("user", question.turns[0])])
            for name, side in (("method", sides.method), ("baseline", sides.baseline)):
                with suppress(TurnFailed):  # the recorded turns will say so, one by one
                    if side is not None:
                        _generated(name, side, ids, settings.max_new_tokens, sides)
                sides.gauge.settle()  # before anything is captured for both


def _generated(name: str, side: Generator, ids: list[int], max_new_tokens: int, sides: Sides) -> Timed:
    """One generation of one side. Raises TurnFailed when the prompt does not fit the model, or something goes wrong."""
    if not ids:
        raise TurnFailed("failed", "the prompt has no tokens")
    if max(ids) >= (size := sides.target.config.vocab_size):
        known = f"the model's vocabulary of {size}"
        raise TurnFailed("failed", f"token {max(ids)} of the prompt is beyond {known}: is this its tokenizer?")
    if len(ids) >= side.context:
        raise TurnFailed("skipped", f"prompt of {len(ids)} tokens leaves no room in a context of {side.context}")
    before = sides.target.uncaptured_passes
    try:
        with _turn_fits_memory(name):
            timed = timed_generation(side, ids, max_new_tokens, sides.target.device, gauge=sides.gauge, side=name)
            return replace(timed, uncaptured_passes=sides.target.uncaptured_passes - before or None)
    except NonFiniteLogits as error:
        raise TurnFailed("failed", f"{name}: {error}") from error


@contextmanager
def _turn_fits_memory(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TurnFailed("failed", f"{name}: out of memory ({first_line(error)})") from error


class Conversation:
    """One question's turns, put to both sides with the same prompt ids."""

    def __init__(self, settings: Run, sides: Sides, chat: Chat, *, method_first: bool) -> None:
        self.settings, self.sides, self.chat, self.method_first = settings, sides, chat, method_first
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
                yield name, _generated(name, side, ids, self.settings.max_new_tokens, self.sides)

    def _text(self, timed: Timed) -> str:
        return self.chat.decode(timed.generation.tokens)

    def _fidelity(self, ids: list[int], answer: Timed, baseline: Timed | None) -> Fidelity | None:
        if baseline is None:
            return None
        target, tokens = self.sides.target, baseline.generation.tokens
        dtype = str(target.dtype).removeprefix("torch.")
        with _turn_fits_memory("fidelity"):
            return compare(
                answer.generation.tokens,
                tokens,
                margin=lambda position: top_two_margin(
                    target, [*ids, *tokens[:position]], self.settings.temperature, self.settings.seed
                ),
                tolerance=NEAR_TIE[dtype],
            )


@torch.inference_mode()
def top_two_margin(target: Llama, tokens: list[int], temperature: float = 0.0, seed: int = 0) -> float:
    """How far apart the target's two best tokens are after `tokens`, in logits: with its noise above temperature 0."""
    ids = torch.tensor(tokens, device=target.device)
    positions = torch.arange(len(tokens), device=target.device)
    hidden = target.run(target.embed(ids), positions, None, slice(0, None))[-1:]
    sampler = Sampler(temperature, seed, target.config.vocab_size, target.device)
    best, second = sampler.scores(target.head(hidden), len(tokens))[0].float().topk(2).values.tolist()
    return (best - second) * (temperature or 1.0)


def _finish(directory: RunDirectory) -> Outcome:
    """Write metrics.json, print the table, and say whether every turn is lossless and none failed."""
    metrics = summary(read_run(directory.folder))
    directory.write_metrics(metrics)
    print(format_table(metrics))
    print(f"recorded in {directory.folder}")
    nothing = metrics["skipped_questions"] and not metrics["overall"]["questions"]
    if nothing:
        print("every question was skipped: no prompt leaves room in the model's context", file=sys.stderr)
    failed = metrics["failed_questions"] or metrics["overall"]["mismatch"] or nothing
    return Outcome(1 if failed else 0, directory.folder)
