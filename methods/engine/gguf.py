"""A GGUF file (llama.cpp's format) -> shape, weights and tokenizer of a model.

The header is parsed here, because the library's own reader takes seconds and 160 MB for a small model; the library
dequantises. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.engine.config import model_config, shown
from methods.engine.llama import ModelConfig
from methods.errors import UserError, reading

SUFFIX = ".gguf"
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's files call themselves llama
SCALARS = dict(zip(range(13), ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"), strict=True))
STRING, ARRAY = 8, 9
MOST_HEADER_BYTES = 1 << 28
MOST_ITEMS = 1 << 22  # of an array, and rows or columns of a tensor
MOST_ENTRIES = 1 << 16  # keys, and tensors
BLOCK_VALUES = 1 << 19  # dequantised at a time
OWN_TYPES = {0: "float32", 30: "bfloat16"}  # of the embedding; what is quantised was made from half precision

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
ROPE_FACTORS = "rope_freqs.weight"  # [head_dim / 2]: what llama3's scaling divides each rotary frequency by
CONFIG_KEYS = {  # key behind the architecture's name -> key of config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.dimension_count": "head_dim",  # the next one, where it is there, says it better
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. shape: rows first; kind: ggml's number of its quantisation; offset: bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What stands before the weights. tensors: by their published names."""

    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def is_gguf(path: Path) -> bool:
    """Whether a checkpoint is such a file, rather than a folder."""
    return path.suffix == SUFFIX and not path.is_dir()


def read_config(file: Path) -> ModelConfig:
    """The shape of the model. Raises UserError for a broken file and for what the engine does not have."""
    header = read_header(file)
    return model_config(file, config_json(file, header), header.metadata.get("tokenizer.ggml.eot_token_id"))


def config_json(file: Path, header: Header) -> dict[str, Any]:
    """The file's metadata under the names that config.json has for them. Raises UserError for another architecture."""
    metadata, tensors = header.metadata, header.tensors
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        valid = ", ".join(ARCHITECTURES)
        raise UserError(f"{file}: general.architecture={shown(architecture)} is not supported; valid: {valid}")
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    raw = {name: own[key] for key, name in CONFIG_KEYS.items() if key in own}
    kind = str(own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none"))
    rope = {"rope_type": kind, "factor": own.get("rope.scaling.factor", own.get("rope.scale_linear"))}
    if ROPE_FACTORS in tensors:
        name = "factors" if kind == "none" else f"{kind} with {ROPE_FACTORS}"
        rope = {"rope_type": name, "factors": _values(file, tensors[ROPE_FACTORS])}
    elif kind == "none":
        rope = {"rope_type": "default"}
    embedding = tensors.get(GLOBAL_NAMES["token_embd.weight"])
    return {
        **raw,
        "model_type": architecture,
        "rope_scaling": rope,
        "use_sliding_window": "sliding_window" in raw,
        "vocab_size": embedding.shape[0] if embedding else None,
        "tie_word_embeddings": GLOBAL_NAMES["output.weight"] not in tensors,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": OWN_TYPES.get(embedding.kind, "float16") if embedding else None,
    }


def transformers_config(file: Path) -> dict[str, Any]:
    """What AutoConfig.for_model takes, but for the scaling of rotary frequencies."""
    raw = config_json(file, read_header(file))
    return {name: value for name, value in raw.items() if name not in ("rope_scaling", "use_sliding_window")}


def read_header(file: Path) -> Header:
    """Metadata and tensor table. Raises UserError for what is no GGUF file, is cut short, or cannot be dequantised."""
    with reading(file, "a GGUF file"):
        facts = file.stat()
        return _header(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1)
def _header(file: Path, size: int, changed_ns: int) -> Header:
    library = _library(file)
    with file.open("rb") as opened:
        with mmap.mmap(opened.fileno(), min(size, MOST_HEADER_BYTES), access=mmap.ACCESS_READ) as mapped:
            cursor = _Cursor(mapped)
            if cursor.take(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            if (version := cursor.number("I")) not in (2, 3):
                raise ValueError(f"version {version}; valid: 2, 3")
            counts = cursor.number("Q"), cursor.number("Q")
            if max(counts) > MOST_ENTRIES:
                raise ValueError(f"{max(counts)} entries, at most {MOST_ENTRIES} are read")
            metadata = dict(cursor.pair() for _ in range(counts[1]))
            table = [cursor.tensor() for _ in range(counts[0])]
        if metadata.get("split.count", 1) not in (0, 1):
            raise ValueError("one part of several; llama-gguf-split --merge joins them")
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16:
            raise ValueError(f"general.alignment={shown(alignment)}")
        begin = -(-cursor.at // alignment) * alignment
        tensors = {_published(name): Entry(shape, kind, begin + offset) for name, shape, kind, offset in table}
        if len(tensors) < len(table) or len(metadata) < counts[1]:
            raise ValueError("a name stands there twice")
        for name, entry in tensors.items():
            bytes_ = _row_bytes(library, name, entry) * int(np.prod(entry.shape[:-1]))
            if entry.offset + bytes_ > size:
                raise ValueError(f"cut short: {shown(name)} ends {entry.offset + bytes_ - size} bytes beyond its end")
        for kind, name in {entry.kind: name for name, entry in tensors.items()}.items():
            _check_kind(library, name, kind)
    return Header(metadata, tensors)


class _Cursor:
    """Steps through a header. Raises ValueError where it ends too early."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def take(self, count: int) -> bytes:
        begin, self.at = self.at, self.at + count
        if self.at > len(self.content):
            raise ValueError("cut short")
        return self.content[begin : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def pair(self) -> tuple[str, Any]:
        """A key of the metadata and its value."""
        return self.text(), self._value(self.number("I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape with rows first, number of its quantisation, offset from the beginning of the weights)."""
        name, dimensions = self.text(), self.number("I")
        if dimensions not in (1, 2):
            raise ValueError(f"{shown(name)} has {dimensions} dimensions; valid: 1, 2")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if not all(0 < side <= MOST_ITEMS for side in shape):
            raise ValueError(f"{shown(name)} of shape {list(shape)}; valid: 1 to {MOST_ITEMS}")
        return name, shape, self.number("I"), self.number("Q")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS and kind != ARRAY:
            return self.number(SCALARS[kind])
        item, count = (self.number("I"), self.number("Q")) if kind == ARRAY else (ARRAY, 0)
        if count > MOST_ITEMS:
            raise ValueError(f"an array of {count}, at most {MOST_ITEMS} are read")
        if item == STRING:
            return [self.text() for _ in range(count)]
        if item not in SCALARS or item == ARRAY:
            raise ValueError(f"a value of kind {item}")
        code = f"<{count}{SCALARS[item]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code))))


def _published(name: str) -> str:
    """llama.cpp's name of a tensor -> the one it has in Hugging Face checkpoints; any other name as it is."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}" if block == "blk" and part in LAYER_NAMES else name


def copy_weights(file: Path, slots: Mapping[str, Tensor]) -> None:
    """Dequantise every tensor into its slot, some rows at a time. All shapes have been checked.

    llama.cpp keeps the two halves that a rotation pairs side by side in q and k of llama's files: row 2i + s of a head
    is row s * head_dim / 2 + i of Hugging Face's.
    """
    library, header = _library(file), read_header(file)
    swaps, half = header.metadata["general.architecture"] == "llama", read_config(file).head_dim // 2
    with file.open("rb") as opened:
        for name, slot in slots.items():
            entry = header.tensors[name]
            places = slot.view(1, -1) if slot.dim() == 1 else slot
            if swaps and name.endswith(("q_proj.weight", "k_proj.weight")):
                places = places.unflatten(0, (-1, 2, half)).transpose(1, 2)
            opened.seek(entry.offset)
            for part, rows in _parts(places):
                raw = np.fromfile(opened, np.uint8, rows * _row_bytes(library, name, entry)).reshape(rows, -1)
                values = library.quants.dequantize(raw, library.GGMLQuantizationType(entry.kind))
                part.copy_(torch.from_numpy(values).view(part.shape))


def _parts(places: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Consecutive pieces along the first dimension, and how many rows of the file each of them takes."""
    rows = places[0].numel() // places.shape[-1]
    for part in places.split(max(1, BLOCK_VALUES // places[0].numel())):
        yield part, len(part) * rows


def _values(file: Path, entry: Entry) -> list[float]:
    """A small float32 tensor's values."""
    if entry.kind != 0 or len(entry.shape) != 1:
        raise UserError(f"{file}: {ROPE_FACTORS} must be one row of float32")
    return list(np.fromfile(file, np.float32, entry.shape[0], offset=entry.offset).tolist())


def _library(file: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise UserError(f"{file}: GGUF needs the library gguf: pip install 'speculative-bench[gguf]'") from error
    return gguf


def _row_bytes(library: Any, name: str, entry: Entry) -> int:
    """Bytes of a row. Raises UserError as `_check_kind` does."""
    if entry.kind not in iter(library.GGMLQuantizationType):
        raise ValueError(f"{shown(name)} has the unknown quantisation {entry.kind}")
    block, bytes_ = library.GGML_QUANT_SIZES[entry.kind]
    if entry.shape[-1] % block:
        raise ValueError(f"rows of {shown(name)} hold {entry.shape[-1]} values, blocks {block}")
    return int(entry.shape[-1] // block * bytes_)


def _check_kind(library: Any, name: str, kind: int) -> None:
    """Raises ValueError for a quantisation that the library does not undo."""
    if not _undone(library, kind):
        valid = ", ".join(one.name for one in library.GGMLQuantizationType if _undone(library, one))
        named = library.GGMLQuantizationType(kind).name
        raise ValueError(f"{shown(name)} has the quantisation {named}, which is not supported; valid: {valid}")


def _undone(library: Any, kind: int) -> bool:
    """Whether the library dequantises a block of this kind."""
    with np.errstate(all="ignore"):
        try:
            block = np.zeros((1, library.GGML_QUANT_SIZES[kind][1]), np.uint8)
            library.quants.dequantize(block, library.GGMLQuantizationType(kind))
        except NotImplementedError:
            return False
    return True


def chat_template(file: Path) -> Any:
    """The file's chat template, if it has one."""
    return read_header(file).metadata.get("tokenizer.chat_template")


def token_texts(file: Path) -> list[str]:
    """The piece of text of every token id. Raises UserError for a file without tokenizer."""
    found = read_header(file).metadata.get("tokenizer.ggml.tokens")
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise UserError(f"model.path={file}: this GGUF file has no tokenizer; wanted: tokenizer.ggml.tokens")
    return found
