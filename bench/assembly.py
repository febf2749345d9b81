"""What a run is put together from: target, method and baseline, rehearsed before anything large is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import environment
from bench.binder import Bound, bind, file_hashes
from bench.chat import Chat, chat_files
from bench.digests import sha256
from bench.gauge import Gauge
from bench.measure import Generator
from bench.places import BENCH, ROOT, locate
from bench.settings import Model, Run
from methods.decoder import Decoder
from methods.engine.checkpoint import empty_weights, load_model, pick_device, pick_dtype, read_config
from methods.engine.fixed import FixedLlama
from methods.engine.hub import hub_name, resolve
from methods.engine.llama import Llama
from methods.errors import UserError, first_line
from methods.vanilla import Vanilla

WHOLE = "0/1"  # the shard that has every question
DEFAULT_THREADS = torch.get_num_threads()  # before a run has set another number


@dataclass(frozen=True)
class Sides:
    """What is compared: the method and, unless it was switched off, vanilla on the same weights."""

    target: Llama
    method: Generator
    baseline: Generator | None
    extra_parameters: int
    datastore_bytes: int | None
    gauge: Gauge
    carries_over: str | None = None  # the setting by which the method learns from one question for the next


@dataclass(frozen=True)
class Parts:
    """A configuration whose files are on this disk. Loaded by `build`."""

    settings: Run
    folder: Path  # the target's
    method: Bound

    @classmethod
    def gather(cls, settings: Run, *, rehearsed: bool) -> Parts:
        """Find every file; before the target's weights, which may be a long download away, `rehearse`.

        rehearsed: this configuration has run before, and is right. Raises UserError for what is wrong.
        """
        method = _bind(settings).fetch(model=settings.model) if rehearsed else rehearse(settings)
        return cls(settings, target_folder(settings.model), method)

    def information(self, command: str) -> dict[str, Any]:
        """What run.json says of this run before anything is loaded."""
        settings, model = self.settings, self.settings.model
        device, shape = pick_device(model.device), read_config(self.folder)
        git = environment.git_state(ROOT, settings.results_dir)
        drafts = dict(self.method.files())
        hashes = {f"target/{name}": digest for name, digest in file_hashes(self.folder).items()}
        for key, path in drafts.items():
            for name, digest in file_hashes(path, draft=True).items():
                label = f"draft/{name}"
                hashes[f"{key}/{name}" if label in hashes else label] = digest
        config = settings.record()
        snapshots = [hub for folder in (self.folder, *drafts.values()) if (hub := hub_name(folder))]
        return {
            "config": config,
            "command": command,
            "model": model.label,
            "method": settings.method_name,
            "demonstration": model.built_in or self.folder.resolve().is_relative_to(BENCH),
            "dtype": str(pick_dtype(model.dtype, device, shape)).removeprefix("torch."),
            "layers": shape.num_layers,
            "engine": pick_engine(settings.engine, device),
            "git": git,
            "commit": git["commit"],
            "files": {key: {"path": str(path)} for key, path in drafts.items()},
            "checkpoint_sha256": hashes,
            "unpinned": [name for name in snapshots if name.partition("@")[2] not in repr(config)],
            "chat_sha256": {file.name: sha256(file) for file in chat_files(self.folder, model.chat_template)},
            **environment.describe(device.type, torch.get_num_threads()),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def target_folder(model: Model) -> Path:
    """Where the target lies, downloaded if need be."""
    return resolve(locate(model.path), model.revision, weights=model.weights != "random")


def rehearse(settings: Run, *, tokenizer: bool = True) -> Bound:
    """The method with its files. Raises UserError for all that is wrong as far as it shows without the weights.

    The sides are put on a target that has the right shapes and no storage; a method that asks for values of its weights
    cannot be made here, and is left to `build`.
    """
    method, model = _bind(settings), settings.model
    folder = resolve(locate(model.path), model.revision, weights=False)
    target = hollow(model, folder)
    if tokenizer:
        Chat(folder, *model.chat)
    method = method.fetch(model=model)
    with _made_without_storage():
        _sides(Parts(settings, folder, method), target)
    return method


@contextmanager
def _made_without_storage() -> Iterator[None]:
    """What a user can mend passes; whatever else a constructor raises may be due to the missing storage."""
    failed: UserError | None = None
    with suppress(Exception, SystemExit):
        try:
            yield
        except UserError as error:
            failed = error
    if failed is not None:
        raise failed


def _bind(settings: Run) -> Bound:
    return bind(settings.method, "method", model=settings.model.name)


def hollow(model: Model, folder: Path) -> Llama:
    """The target without storage; of the sizes of its weights it knows."""
    shape = read_config(folder)
    dtype = pick_dtype(model.dtype, pick_device(model.device), shape)
    return Llama(shape, empty_weights(shape, dtype, torch.device("meta")), folder)


def load_target(model: Model, folder: Path, *, seed: int) -> Llama:
    """The target as conf/model describes it, ready to decode."""
    target = load_model(folder, dtype=model.dtype, device=model.device, weights=model.weights, seed=seed)
    target.pack()
    return target


def pick_engine(engine: str, device: torch.device) -> str:
    """auto, fixed or eager -> fixed or eager."""
    automatic = "fixed" if device.type == "cuda" else "eager"
    return automatic if engine == "auto" else engine


def on_engine(engine: str, target: Llama) -> Llama:
    """The target with its passes as `pick_engine` says."""
    return FixedLlama.of(target) if pick_engine(engine, target.device) == "fixed" else target


def build(parts: Parts, target: Llama | None = None) -> Sides:
    """Put the method and the baseline on the target, which is loaded and put on its engine unless it is given.

    Raises UserError when they cannot be made, or do not fit into memory.
    """
    settings = parts.settings
    with fitting(settings.model, parts.folder):
        loaded = target or on_engine(settings.engine, load_target(settings.model, parts.folder, seed=settings.seed))
        try:
            return _sides(parts, loaded)
        except (Exception, SystemExit) as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            what = f"{type(error).__name__}: {first_line(error)}"  # a method's own mistake
            raise UserError(f"method: {settings.method['_target_']} cannot be made ({what})") from error


@contextmanager
def fitting(model: Model, folder: Path) -> Iterator[None]:
    """Raises UserError for what does not fit into memory, naming the keys that decide how much is needed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        size = hollow(model, folder).weight_bytes / 1e9
        raise UserError(
            f"model.path={model.path}, model.dtype={model.dtype}: out of memory, the weights alone take "
            f"{size:.2g} GB ({first_line(error)}); a smaller model, dtype or model.context needs less"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _sides(parts: Parts, target: Llama) -> Sides:
    settings = parts.settings
    context, temperature, seed = settings.model.context, settings.temperature, settings.seed
    decoder = partial(Decoder, target, context=context, temperature=temperature, seed=seed)
    gauge = Gauge.of(target.device)
    with gauge.holding("method"):
        made = parts.method.make(target=target)
        # Another library's generate is measured as it is; a method of ours is put into the loop.
        method = made if hasattr(made, "generate") else decoder(made)
    carries_over = getattr(made, "carries_over", None)
    if carries_over and (settings.repeats > 1 or settings.shard != WHOLE):
        raise UserError(
            f"{carries_over}: questions learn from those before, so each must come once and all in one process; "
            f"repeats={settings.repeats} must be 1, shard={settings.shard} must be {WHOLE}"
        )
    with gauge.holding("baseline"):
        baseline = decoder(Vanilla(target)) if settings.baseline == "paired" else None
    datastore_bytes = getattr(made, "datastore_bytes", None)
    return Sides(target, method, baseline, made.extra_parameters, datastore_bytes, gauge, carries_over)
