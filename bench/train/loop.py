"""The one training loop: a small module learns from a frozen target.

Deterministic given its settings: batches follow from the seed and the step, so a resumed run continues as if it had
never stopped. Devices, processes, mixed precision and gradient accumulation are accelerate's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from tqdm import tqdm

from bench.environment import has_fast_bfloat16
from bench.files import make_folder, replace_tensors, replace_text
from bench.train import log, packing, state
from bench.train.conversations import Encoded
from bench.train.log import Point
from bench.train.packing import Row
from methods.engine.checkpoint import DTYPES, pick_device
from methods.engine.matrix import Matrix
from methods.errors import UserError, nearest

SUMMARY = "training.json"
MOST_EPOCHS, MOST_ROWS = 10_000, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. A step takes processes * batch * accumulation rows of at most `length` tokens."""

    length: int
    batch: int  # rows a process runs, one after the other, before it accumulates
    accumulation: int
    epochs: float
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    decay: str  # what follows the warm-up: none | linear | cosine
    decay_to: float = 0.0  # share of lr that is left behind the last step
    clip_value: float  # gradients are clipped element by element
    chunk: int  # positions whose logits exist at a time
    mixed_precision: str  # auto (bf16 where the device has it) | bf16 | no
    log_every: int  # steps
    evaluate_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        for name in ("length", "batch", "accumulation", "chunk", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"loop.{name}={getattr(self, name)}: must be at least 1")
        for name in ("epochs", "lr", "clip_value"):
            if not getattr(self, name) > 0:
                raise UserError(f"loop.{name}={getattr(self, name)}: must be above 0")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"loop.{name}={getattr(self, name)}: must be 0 or above")
        if self.batch * self.accumulation > MOST_ROWS:
            raise UserError(
                f"loop.batch={self.batch}, loop.accumulation={self.accumulation}: at most {MOST_ROWS} rows a step"
            )
        if not 0 <= self.decay_to <= 1:
            raise UserError(f"loop.decay_to={self.decay_to}: must be between 0 and 1, a share of loop.lr")
        if not self.epochs <= MOST_EPOCHS:
            raise UserError(f"loop.epochs={self.epochs}: must be at most {MOST_EPOCHS}")
        if len(self.betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"loop.betas={self.betas}: two numbers from 0 to below 1 are wanted")
        for name, valid in (("decay", ("none", "linear", "cosine")), ("mixed_precision", ("auto", "bf16", "no"))):
            if getattr(self, name) not in valid:
                raise UserError(f"loop.{name}={getattr(self, name)} is unknown; valid: {', '.join(valid)}")

    def identity(self) -> dict[str, Any]:
        """What tells a run from one of other settings, as JSON has it.

        `batch` and `accumulation` may change when a run moves to another machine, their product may not. A decay to 0
        is not named: runs were recorded before there was another.
        """
        named = {f"loop.{name}": value for name, value in asdict(self).items()}
        for name in ("batch", "accumulation", "checkpoint_every", *(() if self.decay_to else ("decay_to",))):
            del named[f"loop.{name}"]
        return dict(json.loads(json.dumps(named)))

    def learning_rate(self, step: int, steps: int) -> float:
        """Rate of step 0, 1, ... of `steps`: linear warm-up, then constant, or falling to `decay_to` of it."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay != "none" and step >= self.warmup_steps:
            left = (steps - step) / max(1, steps - self.warmup_steps)
            left = left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
            rate *= self.decay_to + (1 - self.decay_to) * left
        return rate


@dataclass(frozen=True)
class Data:
    """Encoded conversations to train on, and others to judge by."""

    train: Sequence[Encoded]
    held_out: Sequence[Encoded]

    def digest(self) -> str:
        """Hash of every token and mask."""
        total = hashlib.sha256()
        for conversation in (*self.train, *self.held_out):
            total.update(conversation.tokens.tobytes())
            total.update(conversation.assistant.tobytes())
        return total.hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """A thing to train.

    module: maps a Row to Sums; its trainable parameters are all that changes. write: puts the weights into a folder.
    identity: what tells this run from another one in the same folder.
    """

    title: str
    module: nn.Module
    write: Callable[[Path], None]
    identity: Mapping[str, Any]
    output: Path


def accelerator(mixed_precision: str, device: str) -> Accelerator:
    """accelerate's view of this machine; `device` is auto, cpu or cuda.

    Made before anything is loaded: it alone knows which of several GPUs is this process's own. Raises UserError as
    `pick_device` does.
    """
    on_cpu = pick_device(device).type == "cpu" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    # Without emulation: a card that has no bfloat16 computes it, slowly.
    bf16 = has_fast_bfloat16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = ("bf16" if bf16 else "no") if mixed_precision == "auto" else mixed_precision
    # accelerate keeps one precision a process; an experiment trains several things in one, each with its own.
    AcceleratorState._reset_state()
    return Accelerator(cpu=on_cpu, mixed_precision=chosen)


def parameters(*parts: object) -> nn.ParameterList:
    """Makes parameters of the tensors and matrices of the parts, in their places. What two share is one parameter."""
    values = [(part, name, value) for part in parts for name, value in vars(part).items()]
    places = [(v, "weight", v.weight) if isinstance(v, Matrix) else (part, name, v) for part, name, v in values]
    made: dict[int, nn.Parameter] = {}
    for holder, name, tensor in places:
        if isinstance(tensor, torch.Tensor):
            setattr(holder, name, made.setdefault(id(tensor), nn.Parameter(tensor)))
    return nn.ParameterList(made.values())


def saved_dtype(name: str, own: str) -> torch.dtype:
    """What weights are written in: auto (the target checkpoint's own), float32, float16 or bfloat16."""
    if name not in ("auto", *DTYPES):
        raise UserError(f"train.save_dtype={name} is unknown; {nearest(name, ('auto', *DTYPES))}")
    return DTYPES.get(own if name == "auto" else name, torch.float32)


def stored(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies for a file: on the CPU, by rows whatever order the engine keeps, floating-point numbers in `dtype`."""
    by_rows = torch.contiguous_format
    kinds = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    return {n: t.detach().to("cpu", kinds[n]).clone(memory_format=by_rows) for n, t in tensors.items()}


def write_draft(file: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], indent: int = 2) -> None:
    """A draft's weights as torch writes them, and config.json beside them."""
    replace_tensors(file, tensors)
    replace_text(file.with_name("config.json"), json.dumps(config, indent=indent) + "\n")


def finished(output: Path, identity: Mapping[str, Any], say: Callable[[str], object] = print) -> list[Point] | None:
    """Final points of the run that `identity` names if `output` already holds its result.

    Raises UserError when it holds another run's.
    """
    file = output / SUMMARY
    if not file.exists():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        points = [Point(**summary[part]) for part in ("train", "held_out") if part in summary]
        found = dict(summary["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a training summary; resume=false starts over") from error
    state.refuse_another(output, found, identity)
    if note := state.untold(output, found, identity):
        say(note)
    return points


def held_out_rows(data: Data, settings: Settings, device: torch.device) -> list[Row]:
    """The held-out conversations, packed as in training."""
    packed = packing.pack([len(c.tokens) for c in data.held_out], settings.length)
    return [packing.build_row([data.held_out[i] for i in row]).to(device) for row in packed]


class Run:
    """One training run; `fit` drives it."""

    def __init__(self, job: Job, data: Data, settings: Settings, accelerate: Accelerator, seed: int) -> None:
        self.job, self.data, self.settings, self.accelerate = job, data, settings, accelerate
        rows = accelerate.num_processes * settings.batch * settings.accumulation
        lengths = [len(c.tokens) for c in data.train]
        self.plan = packing.plan(lengths, length=settings.length, rows_per_step=rows, epochs=settings.epochs, seed=seed)
        parameters = [p for p in job.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.module, self.optimizer = accelerate.prepare(job.module, optimizer)
        known = {"rows_per_step": rows, "seed": seed, "data": data.digest(), "held_out": len(data.held_out)}
        self.identity = json.loads(json.dumps({**job.identity, **settings.identity(), **known}))
        self.step = self.tokens = 0
        self.window = torch.zeros(4, dtype=torch.float64, device=accelerate.device)
        self.points: list[Point] = []

    def begin(self) -> None:
        """Remove what could be taken for this run's, and find out now if nothing can be written."""
        if self.accelerate.is_main_process:
            make_folder(str(self.job.output), "output")
            self.job.output.joinpath(SUMMARY).unlink(missing_ok=True)
            if self.step == 0:
                self.job.output.joinpath(state.FILE).unlink(missing_ok=True)
            log.write_csv(self.job.output / "log.csv", self.points)
        self.accelerate.wait_for_everyone()

    def restore(self) -> None:
        """Continue from the output folder's state, if it has one."""
        saved = state.load(self.job.output, self.identity)
        if saved is None:
            return
        if note := state.untold(self.job.output, saved.identity, self.identity):
            self.accelerate.print(note)
            self.identity = dict(saved.identity)  # the steps that are done may have had others
        with state.readable(self.job.output):
            self.job.module.load_state_dict(saved.module)
            self.optimizer.load_state_dict(saved.optimizer)
            self.step, self.tokens, self.points = saved.step, saved.tokens, list(saved.points)
            if not 0 <= self.step <= len(self.plan):
                raise ValueError(f"step {self.step} of {len(self.plan)}")
            if self.accelerate.is_main_process:
                self.window += torch.tensor(saved.window, dtype=torch.float64).to(self.window)
            state.restore_random(saved.random)

    def save(self) -> None:
        """Write state and log. A collective call: the log's window is summed over the processes."""
        window = self.accelerate.reduce(self.window, "sum").tolist()
        self.window.zero_()
        if not self.accelerate.is_main_process:
            return
        self.window += torch.tensor(window, dtype=torch.float64).to(self.window)
        saved = state.State(
            identity=self.identity,
            step=self.step,
            tokens=self.tokens,
            window=window,
            points=self.points,
            module=self.job.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=state.random_states(),
        )
        state.save(self.job.output, saved)
        log.write_csv(self.job.output / "log.csv", self.points)

    def train_step(self) -> None:
        """One optimiser step: forward and backward over this process's rows, then the update."""
        rows = self.plan.steps[self.step]
        train, world = self.data.train, self.accelerate.num_processes
        # The loss is a mean over all positions of the step; DDP divides the gradient by the processes, hence `world`.
        positions = sum(packing.learnable(train[i]) for row in rows for i in row)
        mine = rows[self.accelerate.process_index :: world]
        for number, row in enumerate(mine):
            last = number == len(mine) - 1
            with nullcontext() if last else self.accelerate.no_sync(self.module):
                sums = self.module(packing.build_row([train[i] for i in row]).to(self.accelerate.device))
                self.accelerate.backward(sums.loss * (world / max(1, positions)))
            self.window += sums.detached()
        self.accelerate.clip_grad_value_(self.module.parameters(), self.settings.clip_value)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step, len(self.plan))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += sum(len(train[i].tokens) for row in rows for i in row)

    @torch.no_grad()
    def held_out(self) -> Point | None:
        """Means over the held-out conversations, None without any."""
        if not self.data.held_out:
            return None
        sums = torch.zeros_like(self.window)
        rows = held_out_rows(self.data, self.settings, self.accelerate.device)
        for row in rows[self.accelerate.process_index :: self.accelerate.num_processes]:
            with self.accelerate.autocast():
                sums += self.job.module(row).detached()
        return self.point("held_out", sums)

    def point(self, part: str, sums: torch.Tensor, tokens_per_s: float | None = None) -> Point:
        """Means of what all processes summed up."""
        loss, agree, overlap, positions = self.accelerate.reduce(sums.clone(), "sum").tolist()
        count = max(1.0, positions)
        rate = self.settings.learning_rate(max(0, self.step - 1), len(self.plan))
        return Point(self.step, part, self.tokens, loss / count, agree / count, overlap / count, rate, tokens_per_s)


def fit(job: Job, data: Data, settings: Settings, accelerate: Accelerator, *, seed: int, resume: bool) -> list[Point]:
    """Train to the end, from the last checkpoint in the output folder if `resume`. Returns the last points of the log.

    Leaves the weights, log.csv, loss.png and training.json in the output folder. Raises UserError when the folder
    belongs to another run or the disk is full; the last checkpoint then stays readable.
    """
    run = Run(job, data, settings, accelerate, seed)
    if resume:
        done = finished(job.output, run.identity, accelerate.print)
        if done is not None:
            accelerate.print(f"{job.output} already holds this run's result; resume=false trains it again")
            return done
        run.restore()
    run.begin()
    steps = len(run.plan)
    parameters = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
    accelerate.print(
        f"{job.title}: {parameters:,} parameters, {steps} steps of {run.identity['rows_per_step']} rows, "
        f"rows of {settings.length} tokens {1 - run.plan.padding:.1%} full"
    )
    _steps(run)
    return _finish(run)


def _steps(run: Run) -> None:
    """Train step by step, logging and saving."""
    settings, steps = run.settings, len(run.plan)
    bar = tqdm(total=steps, initial=run.step, unit="step", disable=not run.accelerate.is_main_process, smoothing=0.05)
    started, tokens_before = time.perf_counter(), run.tokens
    with bar:
        while run.step < steps:
            run.train_step()
            bar.update()
            if run.step % settings.log_every == 0 or run.step == steps:
                elapsed = time.perf_counter() - started
                point = run.point("train", run.window, (run.tokens - tokens_before) / elapsed)
                run.window.zero_()
                started, tokens_before = time.perf_counter(), run.tokens
                run.points.append(point)
                bar.set_postfix_str(
                    f"loss {point.loss:.3f} agree {point.agreement:.1%} accept {point.acceptance:.1%} "
                    f"{point.tokens_per_s:.0f} tok/s"
                )
            if run.step % settings.evaluate_every == 0 or run.step == steps:
                judged = run.held_out()
                run.points += [judged] if judged else []
                started, tokens_before = time.perf_counter(), run.tokens
            if run.step % settings.checkpoint_every == 0 and run.step < steps:
                run.save()


def _finish(run: Run) -> list[Point]:
    job, output = run.job, run.job.output
    last = {p.part: p for p in run.points}
    if run.accelerate.is_main_process:
        job.write(output)
        log.write_csv(output / "log.csv", run.points)
        log.draw(output / "loss.png", run.points, job.title)
        summary = {"identity": run.identity, "steps": run.step, **{part: asdict(p) for part, p in last.items()}}
        text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
        replace_text(output / SUMMARY, text)
        (output / state.FILE).unlink(missing_ok=True)
    run.accelerate.wait_for_everyone()
    return list(last.values())
