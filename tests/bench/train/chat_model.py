"""A tiny chat model on disk: random weights, a word tokenizer, a one-line chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.tiny import reference_model, write_checkpoint

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<sys>", "<user>", "<bot>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %} <bot> {{ m.content }} {{ eos_token }}"
    "{% else %} {{ '<user>' if m.role == 'user' else '<sys>' }} {{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <bot>{% endif %}"
)
# As Mistral's: a chat with a system turn is an error.
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE


def tokenizer() -> Any:
    """Splits at spaces; ids 0..6 are SPECIAL, then WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE
    return made


def write_chat_model(folder: Path, **changes: Any) -> Path:
    """Checkpoint, tokenizer and template."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, **changes}
    write_checkpoint(folder, reference_model("llama_gqa", **shape))
    tokenizer().save_pretrained(folder)
    return folder


def sharegpt(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random conversations of one to three exchanges."""
    rng = random.Random(seed)

    def say(speaker: str) -> dict[str, str]:
        return {"from": speaker, "value": " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))}

    return [
        {"id": str(i), "conversations": [say(s) for _ in range(rng.randint(1, 3)) for s in ("human", "gpt")]}
        for i in range(count)
    ]


def write_sharegpt(path: Path, count: int) -> Path:
    """A ShareGPT JSON list."""
    path.write_text(json.dumps(sharegpt(count)))
    return path


def interrupt_at(step: int, monkeypatch: Any) -> None:
    """Ctrl-C before a step of the training loop, until `monkeypatch` is undone."""
    from bench.train.loop import Run

    proceed = Run.train_step

    def train_step(run: Run) -> None:
        if run.step == step:
            raise KeyboardInterrupt
        proceed(run)

    monkeypatch.setattr(Run, "train_step", train_step)


def settings(**changes: Any) -> Any:
    """Small training settings."""
    from bench.train.loop import Settings

    values: dict[str, Any] = {
        "length": 64,
        "batch": 2,
        "accumulation": 1,
        "epochs": 1,
        "lr": 1e-2,
        "betas": (0.9, 0.95),
        "weight_decay": 0.0,
        "warmup_steps": 3,
        "decay": "linear",
        "clip_value": 0.5,
        "chunk": 16,
        "mixed_precision": "no",
        "log_every": 2,
        "evaluate_every": 10,
        "checkpoint_every": 4,
    }
    return Settings(**{**values, **changes})


def model_settings(path: Path, **changes: Any) -> Any:
    """A model as conf/model would describe it, in float32 on the CPU."""
    from bench.settings import Model

    nothing = dict.fromkeys(("revision", "context", "chat_template", "system_prompt", "template_arguments", "threads"))
    given = {"name": "tiny", "path": str(path), "weights": "checkpoint", "dtype": "float32", "device": "cpu"}
    return Model(**{**nothing, **given, "exit_layer": 2, "built_in": False, **changes})


def basics(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """What every training of weights takes, from the world's model and conversations."""
    from bench.settings import Text

    return {
        "model": model_settings(world / "model"),
        "data": Text(path=str(world / "data.json"), limit=None, held_out=5),
        "loop_settings": settings(),
        "output": str(output),
        "save_dtype": "float32",
        "seed": 0,
        "resume": True,
        **changes,
    }
