"""Kangaroo against its definition: a slow reference on transformers' own model, without any cache."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.decoder import Decoder, Step
from methods.engine.checkpoint import load_model
from methods.engine.fixed import FixedLlama
from methods.errors import UserError
from methods.kangaroo import Kangaroo
from methods.vanilla import Vanilla
from tests.tiny import adapter_checkpoint, packed, reference_model, tiny_llama, write_checkpoint

JOEY = Path(__file__).parents[2] / "bench" / "assets" / "joey"
SIZES = {"num_hidden_layers": 4, "vocab_size": 48, "eos_token_id": None, "max_position_embeddings": 96}


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    return {"checkpoint": adapter_checkpoint(folder, hidden=64), "exit_layer": 1, "eta": 0.03}


class Reference:
    """The paper's definition (section 3), recomputing everything from the tokens at every point."""

    def __init__(self, model, adapter, exit_layer: int, gamma: int, eta: float) -> None:
        self.model, self.adapter = model, adapter
        self.exit_layer, self.gamma, self.eta = exit_layer, gamma, eta
        # Computed once for each sequence of tokens, always from all of it.
        self.target, self.draft_distribution = functools.cache(self._target), functools.cache(self._draft_distribution)

    def _target(self, tokens: tuple[int, ...]) -> list[int]:
        return self.model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()

    def _draft_distribution(self, tokens: tuple[int, ...]) -> torch.Tensor:
        states = self.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[self.exit_layer]
        adapted = self.adapter(inputs_embeds=states).last_hidden_state[0, -1]
        return torch.softmax(self.model.lm_head(adapted).float(), -1)

    def generate(self, prompt: list[int], new: int, context: int) -> tuple[list[int], list[Step]]:
        tokens = [*prompt, self.target(tuple(prompt))[-1]]
        end, steps = min(len(prompt) + new, context), []
        while len(tokens) < end:
            drafted: list[int] = []
            while len(drafted) < min(self.gamma, context - len(tokens)):
                confidence, token = self.draft_distribution((*tokens, *drafted)).max(-1)
                drafted.append(int(token))
                if confidence < self.eta:
                    break
            says = self.target((*tokens, *drafted))[len(tokens) - 1 :]
            accepted = 0
            while accepted < len(drafted) and drafted[accepted] == says[accepted]:
                accepted += 1
            emitted = (drafted[:accepted] + [says[accepted]])[: end - len(tokens)]
            tokens += emitted
            steps.append(Step(drafted=len(drafted), emitted=len(emitted)))
        return tokens[len(prompt) :], steps


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def adapter_model(folder: Path):
    """The adapter as transformers sees it: a one-layer Llama whose feed-forward block adds nothing."""
    import transformers

    config = transformers.LlamaConfig(**json.loads((folder / "config.json").read_text()))
    model = transformers.LlamaModel(config).eval().requires_grad_(False)
    missing, extra = model.load_state_dict(adapter_tensors(folder), strict=False)
    assert not extra and all("mlp" in n or "post_attention" in n or "embed_tokens" in n for n in missing)
    model.layers[0].mlp.down_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory: pytest.TempPathFactory):
    """A model whose later layers say little, so that a random adapter is right often enough to be interesting."""
    folder = tmp_path_factory.mktemp("kangaroo")
    model = reference_model("llama_gqa", seed=1, **SIZES)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(0.5)
        layer.mlp.down_proj.weight.mul_(0.5)
    model.lm_head.weight.mul_(1.5)
    adapter = adapter_checkpoint(folder / "adapter", std=0.02, heads=2)
    state = torch.load(adapter / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "norm.weight": model.model.norm.weight.clone()}, adapter / "pytorch_model.bin")
    return model, packed(load_model(write_checkpoint(folder / "model", model))), adapter


def compare(decoder: Decoder, reference: Reference, prompt: list[int], new: int) -> None:
    result = decoder.generate(torch.tensor(prompt), new)
    tokens, steps = reference.generate(prompt, new, decoder.context)
    assert len(result.tokens) == len(tokens) and list(result.tokens) == tokens
    assert list(result.steps) == steps


@pytest.mark.parametrize("exit_layer", [0, 1, 2])
@pytest.mark.parametrize("gamma", [1, 6])
@pytest.mark.parametrize("eta", [0, 0.3, 0.6, 1])
def test_steps_equal_the_reference_on_random_weights(random_pair, eta: float, gamma: int, exit_layer: int) -> None:
    model, engine, folder = random_pair
    decoder = Decoder(
        engine,
        Kangaroo(engine, exit_layer=exit_layer, gamma=gamma, eta=eta, variant="kangaroo", checkpoint=str(folder)),
    )
    reference = Reference(model, adapter_model(folder), exit_layer, gamma, eta)
    compare(decoder, reference, [5, 9, 11, 3], 24)
    compare(decoder, reference, [i % 48 for i in range(82)], 24)  # fills the context


@pytest.fixture(scope="module")
def joey(tmp_path_factory):
    """joey for transformers and for the engine, its adapter for both, and a short prompt of its own."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(JOEY, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(JOEY)
    questions = [json.loads(line)["turns"][0] for line in (JOEY / "question.jsonl").read_text().splitlines()]
    chat = [{"role": "user", "content": min(questions, key=len)}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    references: dict[int, Reference] = {}  # what it has computed serves every gamma and eta
    folder = shutil.copytree(JOEY / "kangaroo", tmp_path_factory.mktemp("joey") / "kangaroo")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("exit_layer") == 2  # without it, the adapter may stand behind any layer
    (folder / "config.json").write_text(json.dumps(config))
    return model, packed(load_model(JOEY, dtype="float32")), adapter_model(folder), prompt, references, str(folder)


@pytest.mark.parametrize("exit_layer", [0, 1, 2])
@pytest.mark.parametrize("gamma", [1, 6])
@pytest.mark.parametrize("eta", [0, 0.3, 0.6, 1])
def test_steps_equal_the_reference_on_joey(joey, eta: float, gamma: int, exit_layer: int) -> None:
    model, engine, adapter, prompt, references, folder = joey
    method = Kangaroo(engine, exit_layer=exit_layer, gamma=gamma, eta=eta, variant="kangaroo", checkpoint=folder)
    reference = references.setdefault(exit_layer, Reference(model, adapter, exit_layer, gamma, eta))
    reference.gamma, reference.eta = gamma, eta
    compare(Decoder(engine, method), reference, prompt, 24)


def test_the_random_pair_accepts_some_and_rejects_some(random_pair) -> None:
    _, engine, folder = random_pair
    steps = Decoder(
        engine, Kangaroo(engine, exit_layer=2, gamma=6, eta=0, variant="kangaroo", checkpoint=str(folder))
    ).generate(torch.tensor([5, 9, 11, 3]), 80)
    assert len({step.emitted for step in steps.steps}) >= 4, "the reference test would prove little"


@pytest.mark.parametrize("exit_layer", range(5))
def test_tokens_are_vanillas_at_every_exit_layer(random_pair, exit_layer: int) -> None:
    _, engine, folder = random_pair
    plain, fixed = Decoder(engine, Vanilla(engine)), FixedLlama.of(engine)
    decoder, captured = (
        Decoder(own, Kangaroo(own, exit_layer=exit_layer, gamma=6, eta=0.2, variant="kangaroo", checkpoint=str(folder)))
        for own in (engine, fixed)
    )
    with fixed.preparing():
        captured.generate(torch.tensor([5, 9]), 9)
    for prompt in (torch.tensor([7]), torch.arange(20), torch.arange(1, 95) % 48):
        tokens = plain.generate(prompt, 80).tokens
        result = decoder.generate(prompt, 80)
        assert len(result.tokens) == len(tokens) and result.tokens == tokens
        assert captured.generate(prompt, 80) == result and not fixed.unprepared
        assert all(1 <= step.drafted <= 6 and 1 <= step.emitted <= step.drafted + 1 for step in result.steps)


def test_every_sequence_starts_afresh(random_pair) -> None:
    _, engine, folder = random_pair

    def decoder() -> Decoder:
        return Decoder(
            engine, Kangaroo(engine, exit_layer=1, gamma=4, eta=0.3, variant="kangaroo", checkpoint=str(folder))
        )

    shared, first, second = decoder(), torch.arange(3, 40), torch.tensor([5, 9, 11, 3])
    shared.generate(first, 40)
    assert shared.generate(second, 40) == decoder().generate(second, 40)
    assert shared.generate(first, 40) == decoder().generate(first, 40)


def test_parameters_are_counted_as_the_paper_counts(random_pair) -> None:
    _, engine, folder = random_pair
    method = Kangaroo(engine, exit_layer=1, gamma=4, eta=0.3, variant="kangaroo", checkpoint=str(folder))
    assert method.extra_parameters == 4 * 64 * 64 + 2 * 64


def test_a_broken_adapter_drafts_one_token_a_step_and_is_told_of(random_pair, tmp_path: Path) -> None:
    _, engine, folder = random_pair
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in adapter_tensors(folder).items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(broken, tmp_path / "pytorch_model.bin")
    method = Kangaroo(engine, exit_layer=1, gamma=4, eta=0.3, variant="kangaroo", checkpoint=tmp_path)
    prompt = torch.tensor([5, 9, 11, 3])
    found = Decoder(engine, method).generate(prompt, 20)
    assert found.tokens == Decoder(engine, Vanilla(engine)).generate(prompt, 20).tokens
    assert found.doubtful == len(found.steps) > 0 and {step.drafted for step in found.steps} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0}, "method.gamma=0: must be at least 1"),
        ({"eta": 1.1}, "method.eta=1.1: must be between 0 and 1"),
        ({"eta": -0.1}, "method.eta=-0.1: must be between 0 and 1"),
        ({"exit_layer": -1}, "method.exit_layer=-1: must be between 0 and the model's 4 layers"),
        ({"exit_layer": 5}, "method.exit_layer=5: must be between 0 and the model's 4 layers"),
    ],
)
def test_values_out_of_range_are_refused(random_pair, changes: dict, message: str) -> None:
    _, engine, folder = random_pair
    with pytest.raises(UserError, match=message):
        Kangaroo(
            engine,
            **{"exit_layer": 1, "gamma": 6, "eta": 0.6, "variant": "kangaroo", "checkpoint": str(folder), **changes},
        )


def test_adapter_of_another_hidden_size_is_refused(tmp_path: Path) -> None:
    folder = adapter_checkpoint(tmp_path, hidden=32)
    with pytest.raises(UserError, match="adapter for hidden size 32, the target has 64"):
        Kangaroo(tiny_llama(), exit_layer=1, gamma=6, eta=0.6, variant="kangaroo", checkpoint=str(folder))


def test_an_adapter_of_another_exit_layer_is_refused() -> None:
    engine, folder = load_model(JOEY, dtype="float32"), str(JOEY / "kangaroo")
    with pytest.raises(UserError, match=r"^method\.exit_layer=3: the adapter in .* was trained for 2$"):
        Kangaroo(engine, exit_layer=3, gamma=6, eta=0.6, variant="kangaroo", checkpoint=folder)


def test_an_adapter_of_two_layers_is_refused(tmp_path: Path) -> None:
    folder = adapter_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"an adapter has one layer, config\.json says 2$"):
        Kangaroo(tiny_llama(), exit_layer=1, gamma=6, eta=0.6, variant="kangaroo", checkpoint=str(folder))


def test_extra_and_missing_adapter_tensors_are_named(tmp_path: Path) -> None:
    folder = adapter_checkpoint(tmp_path)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["layers.0.mlp.up_proj.weight"] = state.pop("layers.0.self_attn.v_proj.weight")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing layers\.0\.self_attn\.v_proj.*extra layers\.0\.mlp\.up_proj"):
        Kangaroo(tiny_llama(), exit_layer=1, gamma=6, eta=0.6, variant="kangaroo", checkpoint=str(folder))
