"""What training reads: the target model with its tokenizer, and conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from bench.chat import Chat, Message
from bench.places import locate
from bench.train import conversations
from bench.train.conversations import Encoded, Render
from bench.train.loop import Data
from methods.engine.checkpoint import load_model
from methods.engine.hub import resolve
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.files import Checkpoint

Started = Annotated[Path, Checkpoint("weights to go on from")]


@dataclass(frozen=True)
class ModelSource:
    """A frozen target and how it reads a chat."""

    name: str
    folder: Path
    target: Llama
    tokenizer: Any
    render: Render

    @classmethod
    def load(cls, model: dict[str, Any], device: torch.device) -> ModelSource:
        """From a model configuration (conf/model), onto a device. Raises UserError as loading does."""
        folder = resolve(locate(model["path"]), model.get("revision"))
        settings = {key: model[key] for key in ("dtype", "weights") if model.get(key)}
        target = load_model(folder, device=device, **settings)
        tokenizer, render = chat_format(folder, model)
        return cls(model["name"], folder, target, tokenizer, render)

    def fingerprint(self) -> str:
        """Hash that tells one set of weights from another without reading all of them."""
        weights = self.target.weights
        total = hashlib.sha256()
        for part in (weights.norm, weights.lm_head.weight[:64], *(layer.down.weight[:4] for layer in weights.layers)):
            total.update(part.float().cpu().numpy().tobytes())
        return total.hexdigest()[:16]


def chat_format(folder: Path, model: Mapping[str, Any]) -> tuple[Any, Render]:
    """Tokenizer of a checkpoint and the function that renders a chat as a run of this model (conf/model) does."""
    chat = Chat(folder, *(model.get(key) for key in ("chat_template", "system_prompt", "template_arguments")))

    def render(messages: conversations.Messages, open_turn: bool) -> str:
        return chat.render([Message(**message) for message in messages], open_turn=open_turn)

    return chat.tokenizer, render


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where conversations come from: a ShareGPT file, or `joey`, the built-in generator."""

    path: str
    limit: int | None  # conversations read; None: all of a file
    held_out: int  # conversations kept for evaluation, at most a tenth of all

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit={self.limit}: must be at least 1")
        if self.held_out < 0:
            raise UserError(f"data.held_out={self.held_out}: must be 0 or above")

    def load(self, source: ModelSource, length: int, seed: int, say: Callable[[str], object]) -> Data:
        """Read, encode and split. Raises UserError when nothing is left or the length exceeds the model's context."""
        context = source.target.config.context
        if length > context:
            raise UserError(f"loop.length={length}: the context of {source.name} is {context} tokens")
        if not self.path:
            raise UserError("data.path is missing: give a ShareGPT JSON or JSONL file, or joey")
        corpus = conversations.encode_all(
            conversations.named_records(self.path, self.limit, seed),
            source.render,
            source.tokenizer,
            eos_token_ids=source.target.config.eos_token_ids,
            length=length,
            source=self.path,
        )
        say(f"data.path={self.path}: {corpus.summary()}")
        return split(corpus.conversations, self.held_out, seed)


def frequent(data: Data, size: int | None, target: Llama, *, key: str = "train.draft_vocab") -> Tensor | None:
    """Ids [size] int64, ascending, of what assistants say most often (of equals the lower id); None for a size of None.

    Raises UserError for more than the target has.
    """
    if size is None:
        return None
    most = target.config.vocab_size
    if not 1 <= size <= most:
        raise UserError(f"{key}={size}: must be between 1 and the model's {most} tokens, or null for all")
    counts = np.zeros(most, dtype=np.int64)
    for conversation in data.train:
        counts += np.bincount(conversation.tokens[conversation.assistant], minlength=most)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:size])
    return torch.from_numpy(chosen).to(target.device)


def split(encoded: tuple[Encoded, ...], held_out: int, seed: int) -> Data:
    """Some conversations at random for evaluation, the others for training."""
    count = min(held_out, len(encoded) // 10)
    order = np.random.default_rng((seed, 1)).permutation(len(encoded))
    return Data(train=[encoded[i] for i in sorted(order[count:])], held_out=[encoded[i] for i in sorted(order[:count])])
