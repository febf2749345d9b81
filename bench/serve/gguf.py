"""python -m bench.serve.gguf bench/assets/joey joey.gguf

A Llama checkpoint with a byte-level BPE tokenizer as a GGUF file in float32, for llama.cpp's server: the inverse of
methods.engine.gguf, for joey and its drafter. Other models come as GGUF, or by llama.cpp's own converter. A GGUF file
instead of a folder is dequantised.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.command import again, command
from bench.files import replace_file
from methods.engine.gguf import CONFIG_KEYS, GLOBAL_NAMES, LAYER_NAMES, SUFFIX, is_gguf, read_header
from methods.errors import UserError

USAGE = "usage: python -m bench.serve.gguf FOLDER|FILE FILE.gguf [TOKENIZER_FOLDER]"
WEIGHTS = "model.safetensors"
PLAIN, CONTROL = 1, 3  # kinds of tokens
ARCHITECTURE, FILE_TYPE, ALL_F32 = "general.architecture", "general.file_type", 0


def write(folder: Path, file: Path, tokenizer: Path | None = None) -> None:
    """Write a checkpoint, a folder or a GGUF file, as GGUF in float32. tokenizer: the folder with a folder's
    tokenizer.json, where it is another one.

    Raises UserError for what is no Llama checkpoint, or has another kind of tokenizer.
    """
    from methods.engine.config import read_json

    if is_gguf(folder):
        read_header(folder)
        replace_file(file, lambda path: _dequantise(folder, path))
        return
    config = read_json(folder / "config.json")
    source = tokenizer or folder
    tokens = read_json(source / "tokenizer.json")
    if config.get("model_type") != "llama" or (config.get("rope_scaling") or {}).get("factor"):
        raise UserError(
            f"{folder}: {config.get('model_type')} is not supported; valid: llama without scaled frequencies"
        )
    if tokens["model"]["type"] != "BPE" or (tokens.get("pre_tokenizer") or {}).get("type") != "ByteLevel":
        raise UserError(f"{source}: its tokenizer is not supported; valid: byte-level BPE")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no {WEIGHTS} in this folder; wanted: a checkpoint whose weights are one file")
    template = source / "chat_template.jinja"
    replace_file(
        file, lambda path: _write(path, folder, config, tokens, template.read_text() if template.is_file() else None)
    )


def _write(path: Path, folder: Path, config: dict[str, Any], tokens: dict[str, Any], template: str | None) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(ALL_F32)
    for key, name in CONFIG_KEYS.items():
        if (value := config.get(name)) is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
    _add_tokenizer(writer, config, tokens)
    if template:
        writer.add_chat_template(template)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for name, values in _weights(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp rotates neighbours, see methods.engine.gguf
            values = values.reshape(-1, 2, head_dim // 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(ours(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _dequantise(source: Path, path: Path) -> None:
    """Copy metadata and, one at a time, tensors."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]  # the header's counts
    writer = gguf.GGUFWriter(path, reader.fields[ARCHITECTURE].contents())
    for field in fields:
        if field.name == FILE_TYPE:
            writer.add_file_type(ALL_F32)
        elif field.name != ARCHITECTURE:
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    for one in reader.tensors:
        writer.add_tensor_info(one.name, one.shape[::-1].tolist(), np.dtype(np.float32), 4 * int(one.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in reader.tensors:
        writer.write_tensor_data(gguf.quants.dequantize(one.data, one.tensor_type).astype(np.float32, copy=False))
    writer.close()


def _weights(folder: Path) -> list[tuple[str, np.ndarray]]:
    import torch
    from safetensors.torch import load_file

    loaded = load_file(folder / WEIGHTS)
    return [(name, tensor.to(torch.float32).numpy()) for name, tensor in loaded.items()]


def _add_tokenizer(writer: Any, config: dict[str, Any], tokens: dict[str, Any]) -> None:
    model = tokens["model"]
    special = {one["content"]: one["id"] for one in tokens["added_tokens"]}
    names = {number: text for text, number in {**model["vocab"], **special}.items()}
    listed = [names.get(number, f"<|unused{number}|>") for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(listed)
    writer.add_token_types([CONTROL if text in special else PLAIN for text in listed])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_add_bos_token(False)
    ends = config["eos_token_id"]
    writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)
    if config.get("pad_token_id") is not None:
        writer.add_pad_token_id(config["pad_token_id"])


def ours(name: str) -> str:
    """A checkpoint's name of a tensor -> llama.cpp's. Raises UserError for one that it has no name for."""
    globals_ = {theirs: mine for mine, theirs in GLOBAL_NAMES.items()}
    layers = {theirs: mine for mine, theirs in LAYER_NAMES.items()}
    if name in globals_:
        return globals_[name]
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    if part not in layers:
        raise UserError(f"{name}: llama.cpp has no such tensor")
    return f"blk.{number}.{layers[part]}.{kind}"


@command(again, USAGE)
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    if len(arguments) not in (2, 3) or not arguments[1].endswith(SUFFIX):
        raise UserError(USAGE)
    folder, file, *tokenizer = map(Path, arguments)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    write(folder, file, tokenizer[0] if tokenizer else None)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
