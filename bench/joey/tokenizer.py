"""joey's tokenizer: a byte-level BPE trained on the world's own text, saved as a transformers fast tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.files import replace_text

VOCABULARY = 2048
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CONTEXT = 1024
# joey was never trained with a system message, so a given one opens the first user turn.
CHAT_TEMPLATE = """\
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.system = message['content'] + ' ' -%}
{%- elif message['role'] == 'user' -%}
{{- '<|user|>' + state.system + message['content'] + '<|end|>' -}}
{%- set state.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant|>' + message['content'] + '<|end|>' -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


def rendered(conversation: dict[str, Any]) -> str:
    """A ShareGPT conversation as the chat template writes it."""
    marks = {"human": USER, "gpt": ASSISTANT}
    return "".join(f"{marks[m['from']]}{m['value']}{END}" for m in conversation["conversations"])


def train_tokenizer(conversations: Iterable[dict[str, Any]], folder: Path) -> None:
    """Train on the conversations and save tokenizer.json, tokenizer_config.json and chat_template.jinja in `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message["value"] for conversation in conversations for message in conversation["conversations"])
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    # transformers 5 writes a class name of its own here, which 4.x can't load; both know this one.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    replace_text(path, json.dumps(config, indent=2) + "\n", "--out")
