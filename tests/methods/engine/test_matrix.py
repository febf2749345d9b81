"""Packed matrices against plain products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.engine import llama, matrix
from methods.engine.matrix import Matrix, new_matrix
from tests.tiny import tiny_llama

SHAPES = [(48, 32), (32, 48), (40, 24), (7, 5)]  # the last two are no multiples of a block


def made(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> tuple[Matrix, Matrix]:
    """The same weight twice, the second packed."""
    weight = new_matrix(outputs, inputs, dtype, torch.device("cpu"))
    weight.normal_(generator=torch.Generator().manual_seed(0))
    plain, packed = Matrix(weight), Matrix(weight)
    packed.pack()
    return plain, packed


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_packed_gives_the_same_products(
    outputs: int, inputs: int, rows: int, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_is_intel", lambda: intel)
    monkeypatch.setattr(matrix, "DOUBLED_BYTES", 1)
    plain, packed = made(outputs, inputs)
    states, bias, residual = drawn(rows, inputs), drawn(outputs), drawn(rows, outputs)
    product = states @ plain.weight.t()
    for way in (plain, packed):
        for found, expected in (
            (way(states), product),
            (way(states, bias), product + bias),
            (way.add(residual, states), product + residual),
        ):
            assert found.shape == (rows, outputs) and found.is_contiguous()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_what_goes_in_stays_as_it_is(rows: int) -> None:
    _, packed = made(48, 32)
    states, residual = drawn(rows, 32), drawn(rows, 48)
    before = states.clone(), residual.clone(), packed.weight.clone()
    packed.add(residual, states)
    assert all(torch.equal(a, b) for a, b in zip(before, (states, residual, packed.weight), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    plain, packed = made(48, 32, dtype)
    states = drawn(3, 32).to(dtype)
    torch.testing.assert_close(packed(states), plain(states), atol=0.1, rtol=0.02)


def test_a_large_model_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(llama, "PACKED_BYTES", model.weight_bytes - 1)
    model.pack()
    assert not model.packed
    assert all(matrix._packed is None for matrix in model.weights.matrices())


def test_gradients_flow_through_a_plain_matrix() -> None:
    plain, _ = made(48, 32)
    states = drawn(3, 32).requires_grad_()
    plain.add(torch.zeros(3, 48), states).sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
