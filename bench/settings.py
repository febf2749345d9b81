"""Settings of the commands: what each key may be. Hydra ends here; below, these objects are handed on."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import urlsplit

from bench.config import Composed
from bench.places import BENCH, locate
from bench.questions.sets import QuestionSet
from bench.types import settings_of
from methods.errors import UserError

LARGEST_SEED = 2**63 - 1  # what torch's generators take
CUSTOM = "custom"  # conf/model/custom.yaml, for whatever model.path names
MOST_BATCH = 4096  # sequences at a time
COLDEST = 1e-3  # below this temperature logits leave the range of half precision
Node = dict[str, Any]  # `_target_` and its arguments, see bench.binder


@dataclass(frozen=True, kw_only=True)
class Model:
    """conf/model."""

    name: str
    path: str
    revision: str | None
    weights: Literal["checkpoint", "random"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    device: Literal["auto", "cpu", "cuda"]
    context: int | None
    chat_template: str | None
    system_prompt: str | None
    template_arguments: dict[str, Any] | None
    exit_layer: int
    built_in: bool
    threads: int | None

    @property
    def chat(self) -> tuple[str | None, str | None, dict[str, Any] | None]:
        """What bench.chat.Chat takes besides the folder."""
        return self.chat_template, self.system_prompt, self.template_arguments

    @property
    def label(self) -> str:
        """What results are filed and shown under: the name; of a custom model, what its path ends in."""
        last = PurePath(self.path.partition("@")[0]).name if self.name == CUSTOM else self.name
        return last if last.isprintable() and last not in ("", "..") else self.name

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        check_threads("model.threads", self.threads)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where questions come from in place of a set of conf/questions."""

    path: str | None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What is asked, how, and where the answers go: of a run, and of a comparison of servers."""

    model: Model
    questions: QuestionSet
    task: str | list[str]
    data: Data
    limit: int | None
    question_ids: int | str | list[int | str] | None
    shard: str
    max_new_tokens: int
    temperature: float
    repeats: int
    seed: int
    results_dir: str
    resume: bool

    def __post_init__(self) -> None:
        check_least(1, repeats=self.repeats, max_new_tokens=self.max_new_tokens)
        check_seed(self.seed)
        check_temperature("temperature", self.temperature)

    @property
    def ids(self) -> list[int | str] | None:
        """question_ids as a list."""
        return [self.question_ids] if isinstance(self.question_ids, (int, str)) else self.question_ids


@dataclass(frozen=True, kw_only=True)
class Run(Asking):
    """conf/config.yaml: one configuration to measure."""

    method_name: str
    method: Node
    baseline: Literal["paired", "none"]
    engine: Literal["auto", "fixed", "eager"]
    threads: int | None
    warmup_turns: int

    @classmethod
    def of(cls, composed: Composed) -> Run:
        """Raises UserError for a value of another type, or out of range."""
        values = {key: value for key, value in composed.values.items() if key != "slurm"}
        return settings_of(cls, {**values, "method_name": composed.choices["method"]})

    def __post_init__(self) -> None:
        if self.model.built_in and not Path(locate(self.model.path)).resolve().is_relative_to(BENCH):
            raise UserError(
                f"model.path={self.model.path}: {self.model.name} is built in and lies elsewhere; model=custom is meant"
            )
        check_least(0, warmup_turns=self.warmup_turns)
        check_threads("threads", self.threads)
        super().__post_init__()

    def record(self) -> dict[str, Any]:
        """As plain dictionaries, for run.json."""
        return {**asdict(self), "model": {**asdict(self.model), "name": self.model.label}, "question_ids": self.ids}


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a training reads: a ShareGPT file, or `joey`, the built-in generator."""

    path: str
    limit: int | None  # conversations read; None: all of a file
    held_out: int  # conversations kept for evaluation, at most a tenth of all

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_least(1, **{"data.limit": self.limit})
        check_least(0, **{"data.held_out": self.held_out})


@dataclass(frozen=True, kw_only=True)
class Train:
    """conf/train.yaml: one draft to train."""

    model: Model
    method: Node
    train: Node
    loop: Node
    data: Text
    output: str
    resume: bool
    seed: int
    threads: int | None

    @classmethod
    def of(cls, composed: Composed) -> Train:
        """Raises UserError for a value of another type, or out of range."""
        return settings_of(cls, {key: value for key, value in composed.values.items() if key != "questions"})

    def __post_init__(self) -> None:
        check_threads("threads", self.threads)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Distill:
    """conf/distill.yaml: conversations that a target writes."""

    model: Model
    prompts: str | None
    conversations: int | None
    output: str
    exclude: str | None
    batch: int
    max_new_tokens: int
    unfinished: Literal["drop", "keep"]
    temperature: float
    prompt_tokens: int
    prompt_temperature: float
    prompt_top_k: int | None
    seed: int
    threads: int | None

    @classmethod
    def of(cls, composed: Composed) -> Distill:
        """Raises UserError for a value of another type, or out of range."""
        return settings_of(cls, {key: value for key, value in composed.values.items() if key != "questions"})

    def __post_init__(self) -> None:
        check_least(1, batch=self.batch, max_new_tokens=self.max_new_tokens, prompt_tokens=self.prompt_tokens)
        if self.batch > MOST_BATCH:
            raise UserError(f"batch={self.batch}: must be at most {MOST_BATCH}")
        if self.conversations is None and self.prompts is None:
            raise UserError("conversations=null: drawn prompts never end; give a number, or prompts=FILE")
        optional = {"conversations": self.conversations, "prompt_top_k": self.prompt_top_k}
        check_least(1, **{key: value for key, value in optional.items() if value is not None})
        check_temperature("temperature", self.temperature)
        check_temperature("prompt_temperature", self.prompt_temperature)
        check_threads("threads", self.threads)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Section `server` of conf/serve.yaml: a server that speculates and a plain one, and how they are asked."""

    url: str | None
    baseline_url: str | None
    launch: str | None
    baseline_launch: str | None
    together: bool
    engine: Literal["auto", "vllm", "sglang", "llama_cpp", "openai"]
    model: str | None
    baseline_model: str | None
    prompt: Literal["ids", "chat"]
    cache: bool
    dtype: Literal["float32", "float16", "bfloat16"]
    hardware: str | None
    key: str | None
    extra: dict[str, Any] | None
    timeout_s: float
    start_s: float

    def __post_init__(self) -> None:
        for side in ("", "baseline_"):
            url, launch = getattr(self, f"{side}url"), getattr(self, f"{side}launch")
            if (url is None) == (launch is None):
                found = "none" if url is None else "both"
                raise UserError(f"server.{side}url, server.{side}launch: {found} given; wanted: one of the two")
            if url is not None and not is_url(url):
                raise UserError(
                    f"server.{side}url={url if url.isprintable() else ascii(url)}: wanted: http://HOST:PORT"
                )
        for key in ("timeout_s", "start_s"):
            if not getattr(self, key) > 0:
                raise UserError(f"server.{key}={getattr(self, key)}: must be a number of seconds above 0")
        if self.key is not None and self.key not in os.environ:
            raise UserError(f"server.key={self.key}: there is no such environment variable; set it to the API key")

    @property
    def launched(self) -> bool:
        """Whether a server runs on this machine, started here."""
        return self.launch is not None or self.baseline_launch is not None


@dataclass(frozen=True, kw_only=True)
class Serve(Asking):
    """conf/serve.yaml: two servers to compare under load."""

    name: str
    server: Servers
    concurrency: int | list[int]
    block: int | None
    warmup: bool

    def __post_init__(self) -> None:
        check_name("name", self.name)
        super().__post_init__()
        if self.block is not None:
            check_least(1, block=self.block)
        if not self.levels or min(self.levels) < 1 or len({*self.levels}) < len(self.levels):
            raise UserError(f"concurrency={self.concurrency}: must be numbers from 1, each once, such as [1,2,4]")
        if self.server.prompt == "chat" and self.model.chat_template is not None:
            given = self.model.chat_template
            raise UserError(f"model.chat_template={given}: server.prompt=chat uses the servers' own; give null, or ids")

    @property
    def levels(self) -> list[int]:
        """Requests at a time, one number or several."""
        return [self.concurrency] if isinstance(self.concurrency, int) else self.concurrency

    def record(self) -> dict[str, Any]:
        """As plain dictionaries, for run.json."""
        model = {**asdict(self.model), "name": self.model.label}
        return {**asdict(self), "model": model, "method_name": self.name, "concurrency": self.levels}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """conf/speed.yaml: what bench.speed measures."""

    model: Model
    methods: str | list[str]
    engine: Literal["auto", "fixed", "eager"]
    llama_cpp: bool
    dtypes: str | list[str]
    threads: int | list[int | None] | None
    questions: QuestionSet
    data: Data
    limit: int
    prompt_tokens: int
    max_new_tokens: int
    repeats: int
    rows: int | list[int]
    past: int
    passes: int
    results_dir: str

    def __post_init__(self) -> None:
        at_least_one = ("limit", "prompt_tokens", "max_new_tokens", "repeats", "past", "passes")
        check_least(1, **{name: getattr(self, name) for name in at_least_one})
        for name in ("methods", "dtypes", "threads", "rows"):
            values = self.listed(name)
            if not values or any(isinstance(value, int) and value < 1 for value in values):
                raise UserError(f"{name}={values}: must be a list, not empty, of names or numbers from 1")
        for threads in self.listed("threads"):
            check_threads("threads", threads)
        if self.llama_cpp and self.model.weights == "random":
            raise UserError("llama_cpp=true: model.weights=random are in no file; valid: checkpoint")
        if self.llama_cpp:
            check_least(2, max_new_tokens=self.max_new_tokens)  # the first token is prefill's

    def listed(self, name: str) -> list[Any]:
        """A setting that may be one value or several."""
        value = getattr(self, name)
        return value if isinstance(value, list) else [value]


def is_url(text: str) -> bool:
    """Whether a text names a host, and if a port, one that there is, over HTTP."""
    try:
        parts = urlsplit(text)
        return text.isprintable() and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def check_name(key: str, name: str) -> None:
    """Raises UserError for what cannot be a folder's name."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise UserError(f"{key}={name!a}: names a folder of the results; valid: a name without /")


def check_least(least: int, **values: int) -> None:
    """Raises UserError for a value below the least."""
    for key, value in values.items():
        if value < least:
            raise UserError(f"{key}={value}: must be an integer of at least {least}")


def check_temperature(key: str, temperature: float) -> None:
    """Raises UserError for one that is too cold to divide by."""
    if temperature != 0 and temperature < COLDEST:
        raise UserError(f"{key}={temperature}: must be 0 (greedy) or at least {COLDEST}")


def check_threads(key: str, threads: int | None) -> None:
    """Raises UserError unless this machine has so many processors."""
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"{key}={threads}: must be at least 1 and at most this machine's {most}, or null for all")


def check_seed(seed: int) -> None:
    """Raises UserError for what no random generator takes."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed={seed}: must be 0 or above, and at most {LARGEST_SEED}")
