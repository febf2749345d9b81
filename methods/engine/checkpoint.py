"""Hugging Face checkpoint folder, or GGUF file -> engine weights.

Linears that read the same input become one matrix, filled in place tensor by tensor, so loading needs hardly more
memory than the model. Files are memory-mapped and reopened every so often, because pages once read stay resident.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from methods.engine import config as folders
from methods.engine import gguf
from methods.engine.config import shown, some
from methods.engine.llama import BlockWeights, LayerWeights, Llama, ModelConfig, Weights
from methods.engine.matrix import Matrix, new_matrix
from methods.engine.weight_files import weight_files
from methods.errors import UserError, nearest, reading

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICES = ("auto", "cpu", "cuda")
REOPEN_BYTES = 1 << 20, 256 << 20  # at least and at most; of a checkpoint between, a sixteenth
INIT_STD = 0.02
# Buffers that old versions of transformers saved and that follow from config.json; a part of a GGUF file's settings.
HARMLESS = ("rotary_emb.inv_freq", gguf.ROPE_FACTORS)


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder or a GGUF file. Raises UserError for anything the engine does not have."""
    return gguf.read_config(folder) if gguf.is_gguf(folder) else folders.read_config(folder)


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "auto",
    weights: str = "checkpoint",
    seed: int = 0,
) -> Llama:
    """The model in `folder`, or in a GGUF file.

    dtype: auto (float32 on the CPU, the checkpoint's own on CUDA), float32, float16, bfloat16; device: auto (CUDA if
    present), cpu, cuda, or a torch.device; weights: checkpoint, or random (needs config.json only; normal, std 0.02,
    from `seed`).
    Raises UserError for anything the folder or this machine lacks, and for missing, extra or mis-shaped tensors.
    """
    if weights not in ("checkpoint", "random"):
        raise UserError(f"model.weights={weights} is unknown; {nearest(weights, ('checkpoint', 'random'))}")
    config = read_config(folder)
    place = device if isinstance(device, torch.device) else pick_device(device)
    model = Llama(config, empty_weights(config, pick_dtype(dtype, place, config), place), folder)
    if weights == "random":
        randomise(model.weights, seed)
    else:
        harmless = (*HARMLESS, "lm_head.weight") if config.tied else HARMLESS
        fill(folder, published_weights(model), harmless=harmless)
    return model


def read_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Exactly the named tensors of the checkpoint in `folder`, as for a draft's adapter; of them, `only` are read.

    Raises UserError, listing names, when a tensor is missing, extra or of another shape.
    """
    names = shapes if only is None else only
    slots = {name: torch.empty(shapes[name], dtype=dtype, device=device) for name in names}
    fill(folder, slots, shapes)
    return slots


def fill(
    folder: Path,
    slots: Mapping[str, Tensor],
    beside: Mapping[str, tuple[int, ...]] | None = None,
    harmless: tuple[str, ...] = HARMLESS,
) -> None:
    """Copy the checkpoint's tensors into their slots. All names and shapes are checked before the first copy.

    beside: what the checkpoint must hold that there are no slots for. harmless: ends of names that may be there too.
    Raises as `read_tensors` does.
    """
    files = weight_files(folder)
    if not files:
        wanted = "model.safetensors or pytorch_model.bin, or shards with an index"
        raise UserError(f"{folder}: no weights in this folder; wanted: {wanted}")
    _check(folder, {**{name: tuple(slot.shape) for name, slot in slots.items()}, **(beside or {})}, harmless)
    with torch.no_grad():
        for file in files:
            _copy(file, slots)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the checkpoint in `folder`; empty when there are none."""
    return {name: shape for file in weight_files(folder) for name, shape in _shapes(file).items()}


def pick_device(device: str) -> torch.device:
    """auto, cpu or cuda -> device. Raises UserError for CUDA on a machine without it."""
    if device not in DEVICES:
        raise UserError(f"model.device={device} is unknown; {nearest(device, DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device=cuda: no CUDA device is available here; valid: cpu, auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """auto, float32, float16 or bfloat16 -> dtype; auto is float32 on the CPU, else what the checkpoint says."""
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"model.dtype={dtype} is unknown; {nearest(dtype, ('auto', *DTYPES))}")
    name = dtype if dtype != "auto" else "float32" if device.type == "cpu" else config.dtype
    if name not in DTYPES:
        raise UserError(f"model.dtype=auto: the checkpoint's own {name} is not supported; valid: {', '.join(DTYPES)}")
    return DTYPES[name]


def empty_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights of the right shapes, uninitialised."""
    new, hidden = partial(torch.empty, dtype=dtype, device=device), config.hidden_size
    head = Matrix(new_matrix(config.vocab_size, hidden, dtype, device))
    return Weights(
        embedding=head.weight if config.tied else new(config.vocab_size, hidden),
        norm=new(hidden),
        lm_head=head,
        layers=[
            LayerWeights(input_norm=new(hidden), **empty_block(config, hidden, dtype, device))
            for _ in range(config.num_layers)
        ],
    )


def empty_block(config: ModelConfig, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Fields of BlockWeights for a layer whose q, k and v read `width` numbers, uninitialised."""
    hidden, rows = config.hidden_size, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    sizes = {
        "qkv": (rows, width),
        "output": (hidden, config.num_heads * config.head_dim),
        "gate_up": (2 * config.intermediate_size, hidden),
        "down": (hidden, config.intermediate_size),
    }
    new = partial(torch.empty, dtype=dtype, device=device)
    return {
        **{name: Matrix(new_matrix(*size, dtype, device)) for name, size in sizes.items()},
        "post_norm": new(hidden),
        "qkv_bias": new(rows) if config.qkv_bias else None,
        "q_norm": new(config.head_dim) if config.qk_norm else None,
        "k_norm": new(config.head_dim) if config.qk_norm else None,
    }


def randomise(weights: Weights, seed: int, std: float = INIT_STD) -> None:
    """Fill with a fresh model's values: matrices normal from `seed`, norms 1, biases 0."""
    generator = torch.Generator(weights.embedding.device).manual_seed(seed)
    for tensor in weights.tensors():
        if tensor.dim() == 2:
            tensor.normal_(0, std, generator=generator)
    for layer in weights.layers:
        for norm in (layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm):
            if norm is not None:
                norm.fill_(1)
        if layer.qkv_bias is not None:
            layer.qkv_bias.zero_()
    weights.norm.fill_(1)


def published_weights(model: Llama) -> dict[str, Tensor]:
    """The model's weights under their published names, as views; a tied LM head is left out."""
    config, weights = model.config, model.weights
    slots = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.norm}
    if not config.tied:
        slots["lm_head.weight"] = weights.lm_head.weight
    for index, layer in enumerate(weights.layers):
        parts = {"input_layernorm.weight": layer.input_norm, **published_layer(config, layer)}
        slots |= {f"model.layers.{index}.{name}": part for name, part in parts.items()}
    return slots


def published_layer(config: ModelConfig, layer: BlockWeights) -> dict[str, Tensor]:
    """A layer's weights but for its input norm, under the ends of their published names, as views."""
    heads = [count * config.head_dim for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    parts = {
        "post_attention_layernorm.weight": layer.post_norm,
        "self_attn.o_proj.weight": layer.output.weight,
        "mlp.down_proj.weight": layer.down.weight,
        "self_attn.q_norm.weight": layer.q_norm,
        "self_attn.k_norm.weight": layer.k_norm,
    }
    for name, rows in zip("qkv", layer.qkv.weight.split(heads), strict=True):
        parts[f"self_attn.{name}_proj.weight"] = rows
    if layer.qkv_bias is not None:
        for name, rows in zip("qkv", layer.qkv_bias.split(heads), strict=True):
            parts[f"self_attn.{name}_proj.bias"] = rows
    for name, rows in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
        parts[f"mlp.{name}_proj.weight"] = rows
    return {name: part for name, part in parts.items() if part is not None}


def _check(folder: Path, wanted: Mapping[str, tuple[int, ...]], harmless: tuple[str, ...]) -> None:
    found, faults = tensor_shapes(folder), []
    if missing := [name for name in wanted if name not in found]:
        faults.append(f"missing {some(missing)}")
    if extra := [name for name in found if name not in wanted and not name.endswith(harmless)]:
        faults.append(f"extra {some(extra)}")
    shapes = ((name, found[name], shape) for name, shape in wanted.items() if name in found)
    if wrong := [f"{name} {list(is_)} instead of {list(shape)}" for name, is_, shape in shapes if is_ != shape]:
        faults.append(f"mis-shaped {some(wrong)}")
    if faults:
        settings = "its settings" if gguf.is_gguf(folder) else "config.json"
        raise UserError(f"{folder}: the weights do not fit {settings}: {'; '.join(faults)}")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if gguf.is_gguf(file):
        return {name: entry.shape for name, entry in gguf.read_header(file).tensors.items()}
    if file.suffix == ".safetensors":
        with reading(file, "a weight file"), safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return {name: tuple(tensor.shape) for name, tensor in _load_bin(file).items()}


def _copy(file: Path, slots: Mapping[str, Tensor]) -> None:
    """Copy what the file has into the slots, reopening it so that few of its pages are resident at any time."""
    if gguf.is_gguf(file):
        gguf.copy_weights(file, slots)
        return
    names = [name for name in _shapes(file) if name in slots]
    least, most = REOPEN_BYTES
    while names:
        names = _copy_some(file, names, slots, min(max(file.stat().st_size // 16, least), most))


def _copy_some(file: Path, names: list[str], slots: Mapping[str, Tensor], limit_bytes: int) -> list[str]:
    """Copy tensors until about `limit_bytes` have been read from one mapping; returns the names that are left."""
    read_bytes = 0
    with _opened(file) as (take, mapped):
        for index, name in enumerate(names):
            if read_bytes > limit_bytes and mapped:
                return names[index:]
            tensor = take(name)
            if tensor.is_floating_point() != slots[name].is_floating_point():
                wanted = "floating-point numbers" if slots[name].is_floating_point() else "integers"
                raise UserError(f"{file}: {shown(name)} holds {tensor.dtype}, {wanted} are wanted")
            slots[name].copy_(tensor)
            read_bytes += tensor.nbytes
    return []


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Callable[[str], Tensor], bool]]:
    """What takes a tensor by its name, and whether the file is mapped."""
    if file.suffix == ".safetensors":
        with reading(file, "a weight file"):
            handle = safe_open(file, framework="pt")
        with handle:
            yield handle.get_tensor, True
    else:
        yield _load_bin(file).__getitem__, zipfile.is_zipfile(file)


def _load_bin(file: Path) -> dict[str, Tensor]:
    with reading(file, "a weight file"):
        # The format from before torch 1.6 is no zip archive, cannot be mapped and is read whole.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not are_named_tensors(tensors):
        raise UserError(f"{file}: dense tensors by name are wanted, this file holds something else")
    return dict(tensors)


def are_named_tensors(content: object) -> bool:
    """Whether this is a dictionary of plain tensors by name: none sparse, quantized, nested or without storage."""
    return isinstance(content, dict) and all(isinstance(n, str) and _is_plain(t) for n, t in content.items())


def _is_plain(tensor: object) -> bool:
    odd = ("is_quantized", "is_nested", "is_meta")
    return (
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and not any(getattr(tensor, name) for name in odd)
    )
