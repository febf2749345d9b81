"""joey's base model: a 12-layer Llama trained from nothing on packed conversations with plain torch, on CPU.

Matrix products run under bfloat16 autocast where the CPU has AVX512-BF16 (1.5 times the speed of float32 there); a CPU
without it runs bfloat16 many times slower than float32, so it gets float32. The batch is cut into one share per worker
thread, each with one intra-op thread: two threads of that kind need no barrier inside an operation and were measured
faster than one process with two intra-op threads, above all on a machine with other work.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from bench.environment import has_fast_bfloat16
from bench.files import replace_tensors, replace_text
from bench.joey.tokenizer import ASSISTANT, CONTEXT, END, PAD, USER, VOCABULARY, rendered
from bench.joey.world import conversations, questions

Rows = NDArray[np.uint16]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base model besides the seed. Warm-up, constant rate, linear decay to zero.

    The first `grow_at` steps train a model of `shallow_layers`, which costs about half as much a step; then a new layer
    that does nothing yet is put after each, and the whole model trains on.
    """

    steps: int = 3000
    shallow_layers: int = 6
    grow_at: int = 1500
    # In these steps half of the rows say chance tokens twice. Without them the model knew its words after a million
    # tokens but copied no name from a prompt; copying is a sudden step in training that dense practice brings about.
    echo_from: int = 972
    echo_until: int = 1172
    rows: int = 4
    length: int = 512
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    rewarm_steps: int = 20
    decay_steps: int = 500
    weight_decay: float = 0.1
    clip: float = 1.0
    # The words of a prompt are mostly drawn by chance and can't be predicted: they count less than the answer's.
    prompt_weight: float = 0.25
    workers: int = 2
    eval_rows: int = 16
    eval_every: int = 100
    checkpoint_every_s: float = 150.0

    def rate(self, step: int) -> float:
        warm = (step + 1) / self.warmup_steps
        if step >= self.grow_at:
            warm = (step + 1 - self.grow_at) / self.rewarm_steps
        return self.learning_rate * min(1.0, warm, (self.steps - step) / self.decay_steps)


LAYERS = 12
ROPE_THETA = 10_000.0  # the default of LlamaConfig, whose keyword for it differs between versions


def model_config(eos: int, pad: int, layers: int = LAYERS) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def fresh_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    scale = (2 * LAYERS) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(scale)
    return model


def grown(model: LlamaForCausalLM, config: LlamaConfig) -> LlamaForCausalLM:
    """A deeper model that computes the same: after each old layer, copies of it whose output matrices are zero."""
    deep = LlamaForCausalLM(config)
    times = config.num_hidden_layers // model.config.num_hidden_layers
    deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deep.model.norm.load_state_dict(model.model.norm.state_dict())
    for index, layer in enumerate(deep.model.layers):
        layer.load_state_dict(model.model.layers[index // times].state_dict())
        if index % times:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return deep


def packed_rows(stream: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Rows]:
    """Rows of length + 1 tokens. Each begins with a conversation, as a prompt does; its last one may be cut off."""
    row: list[int] = []
    for conversation in stream:
        row += tokenizer(rendered(conversation), add_special_tokens=False)["input_ids"]
        if len(row) > length:
            yield np.array(row[: length + 1], dtype=np.uint16)
            row = []


def _held_out_stream() -> Iterator[dict[str, Any]]:
    for seed in count(1):
        for question in questions(seed):
            messages = []
            for prompt, answer in zip(question["turns"], question["reference"], strict=True):
                messages += [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
            # Ten of a kind stand together in the question file; a row should hold several kinds.
            yield {"order": question["question_id"] % 10, "conversations": messages}


def held_out_rows(wanted: int, tokenizer: PreTrainedTokenizerBase, length: int) -> Rows:
    pool = sorted(islice(_held_out_stream(), 240), key=lambda conversation: conversation["order"])
    rows = list(packed_rows(pool, tokenizer, length))
    assert len(rows) >= wanted
    return np.stack(rows[:wanted])


def echo_rows(seed: int, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[NDArray[np.uint16]]:
    """Rows of turns whose answer says the prompt again; the prompt is 8 to 60 tokens drawn by chance."""
    rng = random.Random(f"echo {seed}")
    user, assistant, end = (tokenizer.get_vocab()[token] for token in (USER, ASSISTANT, END))
    words = [index for index in range(len(tokenizer)) if index not in (*tokenizer.all_special_ids, user, assistant)]
    while True:
        row: list[int] = []
        while len(row) <= length:
            said = rng.choices(words, k=rng.randint(8, 60))
            row += [user, *said, end, assistant, *said, end]
        yield np.array(row[: length + 1], dtype=np.uint16)


def training_rows(seed: int, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """All rows of the training in their order: [steps * rows, length + 1]."""
    rows = np.empty((recipe.steps * recipe.rows, recipe.length + 1), dtype=np.uint16)
    stream = packed_rows(conversations(seed, 10**9), tokenizer, recipe.length)
    echoes = echo_rows(seed, tokenizer, recipe.length)
    for index in range(len(rows)):
        practice = recipe.echo_from <= index // recipe.rows < recipe.echo_until and index % 2 == 0
        rows[index] = next(echoes if practice else stream)
    return rows


def answer_mask(tokens: Tensor, assistant: int, end: int) -> Tensor:
    """[n, t] -> bool [n, t]: the tokens after <|assistant|>, up to and with <|end|>."""
    index = torch.arange(tokens.shape[1]).expand_as(tokens)
    opened = torch.where(tokens == assistant, index, -1).cummax(dim=1).values
    ended = torch.where(tokens == end, index, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(ended[:, :1], -1), ended[:, :-1]], dim=1)
    return (opened > before) & (tokens != assistant)


def token_losses(model: LlamaForCausalLM, tokens: Tensor, autocast: bool) -> Tensor:
    """[n, t + 1] -> [n, t], the cross-entropy of each token after the first."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden).float().flatten(0, 1)
    return functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none").view(tokens.shape[0], -1)


class Trainer:
    """Replicas share the parameters of `model` and keep gradients of their own, which a step adds up."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe, assistant: int, end: int) -> None:
        self.model, self.recipe, self._assistant, self._end = model, recipe, assistant, end
        self.autocast = has_fast_bfloat16()
        self.replicas = [model]
        for _ in range(recipe.workers - 1):
            replica = LlamaForCausalLM(model.config)
            for mine, shared in zip(replica.parameters(), model.parameters(), strict=True):
                mine.data = shared.data
            self.replicas.append(replica)
        self.pool = ThreadPoolExecutor(recipe.workers, initializer=torch.set_num_threads, initargs=(1,))
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)

    def _weights(self, rows: Tensor) -> Tensor:
        mask = answer_mask(rows, self._assistant, self._end)[:, 1:]
        return torch.where(mask, 1.0, self.recipe.prompt_weight)

    def _backward(self, replica: LlamaForCausalLM, rows: Tensor, weights: Tensor) -> float:
        loss = (token_losses(replica, rows, self.autocast) * weights).sum()
        loss.backward()
        return float(loss.detach())

    def step(self, rows: Tensor, step: int) -> float:
        """One update on rows [n, t + 1]; returns the weighted loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step)
        weights = self._weights(rows)
        weights = weights / weights.sum()
        shares = zip(self.replicas, rows.chunk(len(self.replicas)), weights.chunk(len(self.replicas)), strict=True)
        loss = sum(self.pool.map(lambda share: self._backward(*share), shares))
        parameters = list(self.model.parameters())
        for replica in self.replicas[1:]:
            for mine, theirs in zip(parameters, replica.parameters(), strict=True):
                assert mine.grad is not None and theirs.grad is not None
                mine.grad.add_(theirs.grad)
            replica.zero_grad()
        torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    @torch.inference_mode()
    def held_out(self, rows: Tensor) -> tuple[float, float]:
        """Mean loss over all tokens of the rows, and over the tokens of answers only."""
        mask = answer_mask(rows, self._assistant, self._end)[:, 1:]
        losses = torch.cat(list(self.pool.map(lambda row: token_losses(self.model, row, self.autocast), rows.split(1))))
        return float(losses.mean()), float(losses[mask].mean())


LOG_FIELDS = ("step", "tokens", "learning_rate", "loss", "heldout_loss", "heldout_answer_loss", "seconds")


def _log_text(log: list[dict[str, Any]]) -> str:
    rows = [[str("" if entry[field] is None else entry[field]) for field in LOG_FIELDS] for entry in log]
    return "".join(",".join(row) + "\n" for row in [LOG_FIELDS, *rows])


def train_base(out: Path, work: Path, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Train, or go on from the seed's checkpoint in `work`; writes weights, configs and log into `out`; returns what it
    took. Raises UserError where the disk does not take a file."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    pad, assistant, end = (tokenizer.get_vocab()[token] for token in (PAD, ASSISTANT, END))
    torch.set_num_threads(1)
    checkpoint = work / f"base-{seed}.pt"  # of another seed it would be another model's
    first, elapsed = 0, 0.0
    log: list[dict[str, Any]] = []
    shallow = model_config(end, pad, recipe.shallow_layers)
    if not checkpoint.exists():
        trainer = Trainer(fresh_model(shallow, seed), recipe, assistant, end)
    else:
        state = torch.load(checkpoint, weights_only=True)
        config = shallow if state["step"] <= recipe.grow_at else model_config(end, pad)
        trainer = Trainer(LlamaForCausalLM(config), recipe, assistant, end)
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        first, elapsed, log = state["step"], state["seconds"], state["log"]
    rows = training_rows(seed, recipe, tokenizer)
    checked = torch.from_numpy(held_out_rows(recipe.eval_rows, tokenizer, recipe.length).astype(np.int64))
    saved = time.perf_counter()
    began = saved - elapsed
    recent: list[float] = []
    for step in range(first, recipe.steps):
        if step == recipe.grow_at:
            trainer = Trainer(grown(trainer.model, model_config(end, pad)), recipe, assistant, end)
        batch = torch.from_numpy(rows[step * recipe.rows : (step + 1) * recipe.rows].astype(np.int64))
        recent.append(trainer.step(batch, step))
        done = step + 1
        if done % 10 == 0:
            log.append(_entry(trainer, done, recent, checked, time.perf_counter() - began))
            recent = []
        if time.perf_counter() - saved > recipe.checkpoint_every_s or done == recipe.steps:
            state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(), "log": log}
            replace_tensors(checkpoint, state | {"step": done, "seconds": time.perf_counter() - began}, "--work")
            saved = time.perf_counter()
    seconds = time.perf_counter() - began
    replace_text(out / "training" / "base_loss.csv", _log_text(log), "--out")
    save_model(trainer.model, out)
    return {"seconds": round(seconds, 1), "bfloat16_autocast": trainer.autocast}


def _entry(trainer: Trainer, done: int, recent: list[float], checked: Tensor, seconds: float) -> dict[str, Any]:
    """The log's entry after `done` steps, printed too. recent: losses since the one before; checked: held-out rows."""
    recipe = trainer.recipe
    entry: dict[str, Any] = dict.fromkeys(LOG_FIELDS) | {
        "step": done,
        "tokens": done * recipe.rows * recipe.length,
        "learning_rate": round(recipe.rate(done - 1), 6),
        "loss": round(sum(recent) / len(recent), 4),
        "seconds": round(seconds, 1),
    }
    if done % recipe.eval_every == 0 or done == recipe.steps:
        everything, answers = trainer.held_out(checked)
        entry |= {"heldout_loss": round(everything, 4), "heldout_answer_loss": round(answers, 4)}
    print(" ".join(f"{key}={value}" for key, value in entry.items() if value is not None), flush=True)
    return entry


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Weights as bfloat16 safetensors with their configs."""
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=None, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.bfloat16().save_pretrained(out)
    # transformers 5 names these otherwise; 4.x, and readers of its files, look for the older names as well.
    path = out / "config.json"
    older = {"rope_theta": ROPE_THETA, "torch_dtype": "bfloat16"}
    replace_text(path, json.dumps(json.loads(path.read_text()) | older, indent=2) + "\n", "--out")
