"""python -m bench.speed.training [--steps 12] [--model joey]: is training fast and frugal?

Beside the project's adapter training runs what one would write first: the target and the adapter's attention by
transformers, whole logits, everything float32. Both take the same steps over the same packed rows from the same
weights, in turns in one process; their losses must agree. Peak memory is taken in a process for each, for one row of
2048 tokens with a vocabulary of 32000 and random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from bench.binder import bind
from bench.command import again, command
from bench.config import installed
from bench.settings import Text, Train
from bench.train import loop, packing
from bench.train.conversations import Encoded
from bench.train.kangaroo import Distillation, initialise
from bench.train.source import ModelSource, read_data
from methods.adapters import PUBLISHED, Adapter
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama
from methods.errors import UserError

LENGTH, VOCABULARY = 2048, 32000
AGREE = 1e-3  # largest relative difference of the two losses, over all steps


class PlainAdapter(nn.Module):
    """The adapter of transformers' own attention, over batches [b, n, hidden]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = LlamaAttention(config, layer_idx=0)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        mixed, _ = self.attention(self.input_norm(states), position_embeddings=(cos, sin), attention_mask=mask)
        return self.norm(states + mixed)

    @torch.no_grad()
    def copy_from(self, adapter: Adapter) -> None:
        """Start where another one starts."""
        published = adapter.published()
        self.norm.weight.copy_(published["norm.weight"])
        self.input_norm.weight.copy_(published["layers.0.input_layernorm.weight"])
        for name, matrix in self.attention.named_parameters():
            matrix.copy_(published[f"layers.0.self_attn.{name}"])


class PlainTraining:
    """One optimiser step after another, the straightforward way."""

    def __init__(self, model: Any, adapter: Adapter, exit_layer: int, settings: loop.Settings) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.adapter, self.exit_layer, self.settings = PlainAdapter(model.config), exit_layer, settings
        self.adapter.copy_from(adapter)
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def step(self, rows: Sequence[packing.Row], rate: float) -> float:
        """Train on rows, padded to the longest; returns the mean loss."""

        def padded(parts: list[Tensor], value: int = 0) -> Tensor:
            return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

        tokens, positions = padded([row.tokens for row in rows]), padded([row.positions for row in rows])
        assistant = padded([row.assistant.long() for row in rows]).bool()
        segments = padded([row.segments for row in rows], -1)
        mask = (segments[:, :, None] == segments[:, None, :]).tril()[:, None]
        with torch.no_grad():
            out = self.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
                output_hidden_states=True,
                use_cache=False,
            )
            wanted = out.logits.softmax(-1)
            exits = out.hidden_states[self.exit_layer]
            cos, sin = self.model.model.rotary_emb(exits, positions)
        drafted = self.model.lm_head(self.adapter(exits, cos, sin, mask)).log_softmax(-1)
        chosen = torch.zeros(assistant.shape, dtype=torch.bool)
        chosen[:, :-1] = assistant[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        loss = -(wanted * drafted).sum(-1)[chosen].mean()
        loss.backward()
        nn.utils.clip_grad_value_(self.adapter.parameters(), self.settings.clip_value)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def our_run(target: Llama, data: loop.Data, settings: loop.Settings, exit_layer: int) -> tuple[loop.Run, Adapter]:
    """The project's training, ready for its first step."""
    adapter = Adapter(target.config, variant=PUBLISHED, dtype=torch.float32, device=target.device)
    initialise(adapter, target, seed=0)
    module = Distillation(target, adapter, exit_layer=exit_layer, chunk=settings.chunk)
    job = loop.Job("benchmark", module, lambda folder: None, {}, Path("unused"))
    return loop.Run(job, data, settings, loop.accelerator("no", "cpu"), seed=0), adapter


def throughput(model: str, steps: int) -> dict[str, Any]:
    """Tokens/s of both sides, step by step in turns, and the largest relative difference of their losses."""
    overrides = ["method=kangaroo", f"model={model}", "data.path=joey", "output=unused"]
    config = Train.of(installed().compose("train", overrides))
    settings = bind(config.loop, "loop").make()
    exit_layer = config.method["exit_layer"]
    source = ModelSource.load(replace(config.model, dtype="float32"), torch.device("cpu"))
    text = Text(path="joey", limit=100 * (steps + 2), held_out=0)
    data = read_data(text, source, settings.length, 0, print)
    run, adapter = our_run(source.target, data, settings, exit_layer)
    theirs = PlainTraining(AutoModelForCausalLM.from_pretrained(source.folder), adapter, exit_layer, settings)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    cpu: dict[str, list[float]] = {"ours": [], "plain": []}
    worst = 0.0
    for step in range(steps + 1):
        plan = run.plan.steps[step]
        tokens = sum(len(data.train[i].tokens) for row in plan for i in row)
        seconds, losses = {}, {}
        for side in ("ours", "plain") if step % 2 == 0 else ("plain", "ours"):
            begun, cpu_begun = time.perf_counter(), time.process_time()
            if side == "ours":
                run.train_step()
                loss, _, _, positions = run.window.tolist()
                losses[side] = loss / positions
                run.window.zero_()
            else:
                rows = [packing.build_row([data.train[i] for i in row]) for row in plan]
                losses[side] = theirs.step(rows, settings.learning_rate(step, len(run.plan)))
            seconds[side] = time.perf_counter() - begun
            cpu[side].append(time.process_time() - cpu_begun)
        worst = max(worst, abs(losses["ours"] / losses["plain"] - 1))
        if step:  # the first step of each pays for first uses
            for side, taken in seconds.items():
                rates[side].append(tokens / taken)
    ratios = [ours / other for ours, other in zip(rates["ours"], rates["plain"], strict=True)]
    medians = {f"{side}_tok_per_s": statistics.median(values) for side, values in rates.items()}
    # Other work on the machine moves the clock, and CPU seconds much less.
    cpu_ratio = sum(cpu["plain"][1:]) / sum(cpu["ours"][1:])
    figures = {"ratio": statistics.median(ratios), "ratios": ratios, "cpu_ratio": cpu_ratio}
    return {**medians, **figures, "largest_loss_difference": worst}


SHAPE = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=12,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)


def peak_memory(side: str) -> dict[str, float]:
    """Bytes of one step's peak above what the imported libraries take; `side` is ours or plain. For a fresh process."""
    import psutil

    overrides = ["model=vicuna-7b", "data.path=joey", "output=unused"]
    chosen = bind(installed().compose("train", overrides).values["loop"], "loop").make()
    settings = replace(chosen, batch=1, accumulation=1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, LENGTH).astype(np.int32)
    conversation = Encoded(tokens, np.arange(LENGTH) > 50)
    with tempfile.TemporaryDirectory() as folder:
        SHAPE.save_pretrained(folder)
        before = psutil.Process().memory_info().rss
        target = load_model(Path(folder), dtype="float32", device="cpu", weights="random")
    run, adapter = our_run(target, loop.Data([conversation], []), settings, exit_layer=2)
    if side == "ours":
        run.train_step()
    else:
        theirs = PlainTraining(LlamaForCausalLM(SHAPE), adapter, 2, settings)
        del run, target
        theirs.step([packing.build_row([conversation])], settings.lr)
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


@command(again)
def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 2 where the two sides do not compute the same."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed.training", description=__doc__)
    parser.add_argument("--model", default="joey")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=("ours", "plain"), help=argparse.SUPPRESS)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(json.dumps(peak_memory(given.memory_of)))
        return 0
    found = throughput(given.model, given.steps)
    print(f"{given.steps} steps of {given.model}'s adapter training, float32, {given.threads} threads")
    print(f"  this project             {found['ours_tok_per_s']:8.0f} tokens/s")
    print(f"  transformers and torch   {found['plain_tok_per_s']:8.0f} tokens/s")
    print(f"  ratio {found['ratio']:.2f}, step by step {min(found['ratios']):.2f} to {max(found['ratios']):.2f}")
    print(f"  ratio of CPU seconds {found['cpu_ratio']:.2f}")
    print(f"  losses differ by at most {found['largest_loss_difference']:.1e} of their value")
    peaks = {side: memory_in_own_process(side, given.threads) for side in ("ours", "plain")}
    print(f"peak memory of a step, {LENGTH} tokens, vocabulary {VOCABULARY}, random weights, without the libraries")
    print(f"  this project             {peaks['ours'] / 1e6:8.0f} MB")
    print(f"  transformers and torch   {peaks['plain'] / 1e6:8.0f} MB")
    print(f"  ratio {peaks['ours'] / peaks['plain']:.2f}")
    if found["largest_loss_difference"] > AGREE:
        raise UserError("the two sides do not compute the same loss: the comparison means nothing")
    return 0


def memory_in_own_process(side: str, threads: int) -> float:
    """Peak bytes of a side: the high-water mark belongs to a process, so each side gets its own."""
    command = [sys.executable, "-m", "bench.speed.training", "--memory-of", side, "--threads", str(threads)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return float(json.loads(lines[-1])["bytes"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
