"""What training reads: the target model with its tokenizer, and conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from bench.chat import Chat, Message
from bench.places import locate
from bench.settings import Model, Text
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
    def load(cls, model: Model, device: torch.device) -> ModelSource:
        """As conf/model describes it, onto a device. Raises UserError as loading does."""
        folder = resolve(locate(model.path), model.revision)
        target = load_model(folder, device=device, dtype=model.dtype, weights=model.weights)
        tokenizer, render = chat_format(folder, model)
        return cls(model.name, folder, target, tokenizer, render)

    def identity(self, saved: torch.dtype) -> dict[str, str]:
        """What tells a training on this target from others. saved: how its result is written."""
        return {"target": self.fingerprint(), "dtype": self.dtype, "save_dtype": str(saved).removeprefix("torch.")}

    @property
    def dtype(self) -> str:
        """What the target computes in."""
        return str(self.target.dtype).removeprefix("torch.")

    def fingerprint(self) -> str:
        """Hash that tells one set of weights from another without reading all of them."""
        weights = self.target.weights
        total = hashlib.sha256()
        for part in (weights.norm, weights.lm_head.weight[:64], *(layer.down.weight[:4] for layer in weights.layers)):
            total.update(part.float().cpu().numpy().tobytes())
        return total.hexdigest()[:16]


def chat_format(folder: Path, model: Model) -> tuple[Any, Render]:
    """Tokenizer of a checkpoint and the function that renders a chat as a run of this model does."""
    chat = Chat(folder, *model.chat)

    def render(messages: conversations.Messages, open_turn: bool) -> str:
        return chat.render([Message(**message) for message in messages], open_turn=open_turn)

    return chat.tokenizer, render


def read_data(data: Text, source: ModelSource, length: int, seed: int, say: Callable[[str], object]) -> Data:
    """Read, encode and split conversations. Raises UserError when nothing is left, or the length exceeds the model's
    context.
    """
    context = source.target.config.context
    if length > context:
        raise UserError(f"loop.length={length}: the context of {source.name} is {context} tokens")
    if not data.path:
        raise UserError("data.path is missing: give a ShareGPT JSON or JSONL file, or joey")
    corpus = conversations.encode_all(
        conversations.named_records(data.path, data.limit, seed),
        source.render,
        source.tokenizer,
        eos_token_ids=source.target.config.eos_token_ids,
        length=length,
        source=data.path,
    )
    say(f"data.path={data.path}: {corpus.summary()}")
    return split(corpus.conversations, data.held_out, seed)


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
