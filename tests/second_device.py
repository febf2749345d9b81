"""A second device made of CPU memory: it proves without a GPU what a GPU would see of the host's ways.

Its tensors keep their values on the CPU, where every operation on them is done. They refuse to meet a CPU tensor of one
dimension or more, and what makes a GPU's host wait is counted: values and shapes that come back, and copies that were
not begun with non_blocking (whether their memory is pinned is not seen). What torch's own operations ask of a device by
themselves, such as some of linalg, is not. Nothing here says how fast anything is.

torch lets Python stand for a backend that it keeps free (PrivateUse1): tensors are a subclass, what makes the first
tensor of a device is registered, and the random generators, which no Python can bring, are the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from methods.engine.checkpoint import empty_weights
from methods.engine.llama import Llama

NAME = "standin"  # torch gives every Module and Tensor a method of this name
CPU = torch.device("cpu")
COPIES = ("copy_", "_to_copy", "_copy_from")
# What makes tensors of nothing; torch makes all else of these (zeros: empty and zero_).
FIRST = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m")
# What gives a value to the host, or a shape that only values decide.
FOR_THE_HOST = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
)

# Operations that are done as one: some whose parts make no host wait, and as they are met those that have no parts.
aten = torch.ops.aten
attention = aten._scaled_dot_product_attention_math.default
ONE: set[Any] = {aten.linear.default, aten.matmul.default, aten.rms_norm.default, attention}

waits: list[str] = []  # the operations for which a GPU's host would have waited, in order


class Strayed(AssertionError):
    """A tensor of the second device met one of the CPU."""


class Second(Tensor):
    """A tensor on the second device."""

    values: Tensor  # where they really are

    @staticmethod
    def __new__(cls, values: Tensor) -> Second:
        with torch._C._InferenceMode(False):  # in it, torch would find views older than what they look at
            made = Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=here(),
            )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation on the values; one that consists of others comes back as these."""
        if operation not in ONE:
            composed = operation.decompose(*args, **(kwargs or {}))
            if composed is not NotImplemented:
                return composed
            ONE.add(operation)
        return _perform(operation, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"second({self.values})"

    def tolist(self) -> Any:
        """What torch gives of a plain tensor only."""
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file has the values, as of any device."""
        return self.cpu().__reduce_ex__(protocol)


def _perform(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name, ours, others = operation.overloadpacket.__name__, dict[int, Second](), list[Tensor]()

    def value(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Second):
            ours[id(tensor.values)] = tensor
            return tensor.values
        others.append(tensor)
        return tensor

    values = [_each(argument, value) for argument in args]
    keywords = {key: _each(argument, value) for key, argument in kwargs.items()}
    if name not in COPIES and any(tensor.dim() for tensor in others):
        raise Strayed(f"{name} of tensors on the second device and on the CPU")
    download = not isinstance(args[0], Second) if name == "copy_" else keywords.get("device") == CPU
    if download or _waits(operation, name, args, keywords, upload=name in COPIES and bool(others)):
        waits.append(name)
    if "device" in keywords:
        keywords["device"] = CPU
    found = operation(*values, **keywords)
    for tensor in ours.values():
        assert tensor.shape == tensor.values.shape, f"{name} gives a tensor another shape"
    return found if download else _each(found, lambda made: ours[id(made)] if id(made) in ours else Second(made))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An argument or a result with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_each(part, change) for part in value]) if isinstance(value, (list, tuple)) else value


def _waits(operation: Any, name: str, args: tuple[Any, ...], keywords: dict[str, Any], *, upload: bool) -> bool:
    """Whether the host waits for an operation whose result stays on the device."""
    if upload:  # of ordinary memory: a GPU has read it before the host may go on
        return not (keywords.get("non_blocking") or True in args[2:])
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):  # as many rows as a mask has true values
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return _for_the_host(operation)


@cache
def _for_the_host(operation: Any) -> bool:
    return any(tag in operation.tags for tag in FOR_THE_HOST)


class Generator(torch.Generator):
    """The CPU's random numbers, on the second device too."""

    def __new__(cls, device: Any = CPU) -> Generator:
        return super().__new__(cls, CPU if torch.device(device).type == NAME else device)


@cache
def here() -> torch.device:
    """The device, once it is known."""
    return torch.device(NAME, 0)


@cache
def register() -> torch.library.Library:
    """Make the device known to this process, for good."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")

    def first(make: Any) -> Any:
        def on_second(*args: Any, **kwargs: Any) -> Second:
            return Second(make(*args, **{key: value for key, value in kwargs.items() if key == "dtype"}))

        return on_second

    for name in FIRST:
        packet, _, overload = name.partition(".")
        make = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(name, first(make), "PrivateUse1")

    def copy_from(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
        return _perform(torch.ops.aten.copy_.default, (destination, source, non_blocking), {})

    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library


def connect(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, for one test, with no wait counted yet."""
    register()
    monkeypatch.setattr(torch, "Generator", Generator)
    waits.clear()
    return here()


def moved(model: Llama, device: torch.device) -> Llama:
    """A model with the same weights on another device."""
    weights = empty_weights(model.config, model.dtype, device)
    for there, here in zip(weights.tensors(), model.weights.tensors(), strict=True):
        there.copy_(here)
    return Llama(model.config, weights, model.folder)
