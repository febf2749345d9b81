"""What a user gets without this project: transformers' own generate, plain or with its prompt lookup."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from methods.decoder import Generation, NoPhases, Phases, Step
from methods.engine.checkpoint import published_weights
from methods.engine.gguf import chat_template, is_gguf, token_texts, transformers_config
from methods.engine.llama import Llama, inverse_frequencies
from methods.errors import UserError, check_sizes

GGUF_TOKENIZERS = (5, 18)  # the first transformers that reads a GGUF tokenizer's special tokens as the file says
PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class, as transformers 4 and 5 write it


class HfGenerate:
    """transformers' generate, greedily, on the target's own weights; it stands beside the Decoder, not inside it.

    Its model takes the shape from config.json in the target's folder and the target's tensors as they are,
    copying only those that the engine stores by columns; so random weights work too. context: most tokens of prompt
    and output together (None: the model's). prompt_lookup: tokens drafted from the prompt (None: no drafting).

    Tokens are counted from outside: how long the sequence is after each call of the model. The prompt's call is no
    step. With prompt lookup transformers verifies its first draft in that very call; what it accepts there is recorded
    as a step of its own, so that the steps emit all tokens but the first. Raises UserError for values out of range.
    """

    extra_parameters = 0

    def __init__(self, target: Llama, *, context: int | None, temperature: float, prompt_lookup: int | None) -> None:
        if temperature != 0:
            raise UserError(f"temperature={temperature}: transformers' generate is measured greedily here; valid: 0")
        if prompt_lookup is not None and prompt_lookup < 1:
            raise UserError(f"method.prompt_lookup={prompt_lookup}: must be at least 1, or null for plain decoding")
        check_sizes(prompt_lookup=prompt_lookup or 1)
        self.context = target.config.context if context is None else context
        if not 2 <= self.context <= target.config.context:
            raise UserError(f"context={self.context}: must be between 2 and the model's {target.config.context}")
        self.eos_token_ids, self.prompt_lookup = target.config.eos_token_ids, prompt_lookup
        self.model = model_of(target)

    def generate(self, prompt: Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
        """Decode prompt [n] (int64, on the model's device) until EOS, max_new_tokens or a full context.

        Raises UserError when the prompt is empty or fills the context.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        length = len(prompt)
        limit = min(max_new_tokens, self.context - length)
        if length == 0 or limit < 1:
            raise UserError(f"prompt of {length} tokens: must be 1 to {self.context - 1} to leave room in the context")
        settings = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=list(self.eos_token_ids) or self.model.config.vocab_size,  # which no token is
            pad_token_id=0,  # one sequence is never padded; without it transformers warns
            prompt_lookup_num_tokens=self.prompt_lookup,
        )
        watch = Watch(length, limit, phases or NoPhases())
        hooks = [
            self.model.register_forward_pre_hook(watch.before, with_kwargs=True),
            self.model.register_forward_hook(watch.after),
        ]
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    prompt[None],
                    attention_mask=torch.ones_like(prompt[None]),
                    generation_config=settings,
                    stopping_criteria=StoppingCriteriaList([watch]),
                )
        finally:
            for hook in hooks:
                hook.remove()
        tokens = tuple(output[0, length : length + limit].tolist())
        stop = "eos" if tokens[-1] in self.eos_token_ids else "length"
        if stop == "length" and len(tokens) < max_new_tokens:
            stop = "context"
        return Generation(tokens=tokens, steps=watch.steps(), stop=stop)


class Watch:
    """Sees each call of the model from outside: rows that went in, time spent, and how long the sequence was after."""

    def __init__(self, prompt_length: int, limit: int, phases: Phases) -> None:
        self.phases, self.most = phases, prompt_length + limit
        self.rows: list[int] = []
        self.lengths = [prompt_length]

    def before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.span = self.phases.verify() if self.rows else self.phases.prefill()
        self.rows.append(kwargs["input_ids"].shape[1])
        self.span.__enter__()

    def after(self, model: Any, args: Any, output: Any) -> None:
        self.span.__exit__(None, None, None)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """As a stopping criterion, which is asked after every call of the model; it never stops.

        Up to transformers 5.17 at least it is asked about a draft as well, before the call that verifies it, and the
        last draft may go beyond the limit.
        """
        if len(self.lengths) == len(self.rows):
            self.lengths.append(min(input_ids.shape[1], self.most))
        return torch.zeros(1, dtype=torch.bool, device=input_ids.device)

    def steps(self) -> tuple[Step, ...]:
        """What each call drafted and emitted; of the prompt's call, what it emitted beyond the first token."""
        emitted = [after - before for before, after in zip(self.lengths, self.lengths[1:], strict=False)]
        drafted = [self.rows[0] - self.lengths[0], *[rows - 1 for rows in self.rows[1:]]]
        first = [Step(drafted=drafted[0], emitted=emitted[0] - 1)] if emitted[0] > 1 else []
        later = zip(drafted[1:], emitted[1:], strict=True)
        return (*first, *[Step(drafted=tokens, emitted=count) for tokens, count in later])


def model_of(target: Llama) -> Any:
    """transformers' model with the target's weights, on its device."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if target.folder is None:
        raise UserError("model.path: transformers' generate needs the config.json of the target's folder")
    with init_empty_weights(include_buffers=False):  # buffers, such as rotary frequencies, come from the config
        gguf = is_gguf(target.folder)
        own = AutoConfig.for_model(**transformers_config(target.folder)) if gguf else None
        config = own or AutoConfig.from_pretrained(target.folder)
        model = AutoModelForCausalLM.from_config(config)
    tensors = {name: tensor.contiguous() for name, tensor in published_weights(target).items()}
    if target.config.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    if gguf:  # transformers has no name for factors of single frequencies
        model.model.rotary_emb.inv_freq = inverse_frequencies(target.config)
    model.generation_config = GenerationConfig()  # nothing from the checkpoint: the settings are given with each call
    return model.to(target.device).eval().requires_grad_(False)


def load_tokenizer(path: Path) -> Any:
    """transformers' tokenizer of a checkpoint folder or of a GGUF file, whose chat template it has too.

    Raises UserError for a file without tokenizer; for everything else whatever transformers raises.
    """
    import transformers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not is_gguf(path):
        for file in path.glob("*.json"):  # transformers would open them, and wait at a FIFO
            if os.path.exists(file) and not os.path.isfile(file):
                raise UserError(f"{file}: not a file")
        return (PreTrainedTokenizerFast if _is_plain(path) else AutoTokenizer).from_pretrained(path)
    major, minor = transformers.__version__.split(".")[:2]
    if (int(major), int(minor)) < GGUF_TOKENIZERS:
        wanted = ".".join(map(str, GGUF_TOKENIZERS))
        raise UserError(
            f"{path}: transformers {transformers.__version__} confuses the special tokens of a GGUF file's tokenizer; "
            f"take transformers>={wanted}: pip install -e '.[gguf]'"
        )
    token_texts(path)
    with TemporaryDirectory() as folder:  # where no other tokenizer's files lie beside it
        Path(folder, path.name).symlink_to(path.resolve())
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    tokenizer.chat_template = chat_template(path)
    return tokenizer


def _is_plain(folder: Path) -> bool:
    """Whether tokenizer.json says all of a Llama model's tokenizer. AutoTokenizer gives the same, but brings
    transformers' models and torch's compiler with it: one to two seconds at the start of every command.
    """
    try:
        names = ("config.json", "tokenizer_config.json")
        model, tokenizer = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
        named = (model.get("model_type"), tokenizer.get("tokenizer_class"), tokenizer.get("auto_map"))
    except (OSError, ValueError, AttributeError):  # AutoTokenizer says what is the matter
        return False
    return named in [("llama", name, None) for name in PLAIN_TOKENIZERS] and (folder / "tokenizer.json").is_file()
