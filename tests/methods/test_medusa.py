"""Medusa against its definition: the tree walked path by path on transformers' own model, without any cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.chat import Chat, Message
from bench.places import BENCH
from bench.questions.formats import read_questions
from methods import draft
from methods.decoder import Decoder, Step
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.medusa import Heads, Medusa
from methods.trees import CALIBRATION, MC_SIM_7B_63
from methods.vanilla import Vanilla
from tests.tiny import packed, reference_model, tiny_llama, write_checkpoint

SIZES = {"num_hidden_layers": 3, "vocab_size": 48, "eos_token_id": None, "max_position_embeddings": 96}
PROMPTS = ([5, 9, 11, 3], list(range(3, 30)), [i % 48 for i in range(82)])  # the last fills the context
OWN_TREE = [[1], [0], [0, 2], [0, 0], [1, 0], [0, 0, 1]]
ASSETS = BENCH / "assets" / "joey"
Tensors = dict[str, Tensor]


def write_heads(folder: Path, tensors: Tensors, *, claimed: int = 4, layers: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"medusa_num_heads": claimed, "medusa_num_layers": layers, "base_model_name_or_path": "house/target"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "medusa_lm_head.pt")
    return folder


def random_heads(count: int = 4, hidden: int = 64, vocab: int = 48, *, layers: int = 1, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for k in range(count):
        for layer in range(layers):
            tensors[f"{k}.{layer}.linear.weight"] = torch.randn(hidden, hidden, generator=generator) * 0.05
            tensors[f"{k}.{layer}.linear.bias"] = torch.randn(hidden, generator=generator) * 0.1
        tensors[f"{k}.{layers}.weight"] = torch.randn(vocab, hidden, generator=generator)
    return tensors


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    return {"checkpoint": write_heads(folder, random_heads())}


def block(tensors: Tensors, head: int, states: Tensor, layers: int = 1) -> Tensor:
    for layer in range(layers):
        pre = states @ tensors[f"{head}.{layer}.linear.weight"].T + tensors[f"{head}.{layer}.linear.bias"]
        states = states + pre * torch.sigmoid(pre)
    return states


def fitted_heads(model: Any, engine: Llama, count: int) -> Tensors:
    """Heads that have learnt some of the model's own text, by ridge regression: right at times, wrong at times."""
    tensors, vocab = random_heads(count), engine.config.vocab_size
    texts = [[*p, *Decoder(engine, Vanilla(engine)).generate(torch.tensor(p), 60).tokens] for p in PROMPTS]
    texts += [torch.randint(0, vocab, (90,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(3)]
    for k in range(count):
        states, wanted = [], []
        for text in texts:
            final = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
            states.append(block(tensors, k, final[: -2 - k]))
            wanted.append(torch.tensor(text[2 + k :]))  # head k, counted from 0: k + 2 places after the state
        features, labels = torch.cat(states), torch.nn.functional.one_hot(torch.cat(wanted), vocab).float()
        ridge = features.T @ features + 60 * torch.eye(features.shape[1])
        tensors[f"{k}.1.weight"] = torch.linalg.solve(ridge, features.T @ labels).T.contiguous()
    return tensors


class Reference:
    """The definition, recomputing everything from the tokens at every point."""

    def __init__(self, model: Any, heads: Tensors, tree: Sequence[Sequence[int]]) -> None:
        self.model, self.heads, self.tree = model, heads, tree

    def target(self, tokens: list[int]) -> list[int]:
        return self.model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()

    def ranking(self, tokens: list[int], head: int) -> list[int]:
        """The head's choices, best first, from the state before the pending token."""
        final = self.model(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states[-1][0, -1:]
        logits = block(self.heads, head, final) @ self.heads[f"{head}.1.weight"].T
        return logits[0].sort(descending=True).indices.tolist()

    def generate(self, prompt: list[int], new: int, context: int) -> tuple[list[int], list[Step]]:
        tokens = [*prompt, self.target(prompt)[-1]]
        end, steps = min(len(prompt) + new, context), []
        while len(tokens) < end:
            fitting = [path for path in self.tree if len(tokens) + len(path) <= context]
            rankings = [self.ranking(tokens, head) for head in range(max(map(len, fitting)))]
            best: list[int] = []
            for path in fitting:
                candidates = [rankings[head][choice] for head, choice in enumerate(path)]
                says = self.target([*tokens, *candidates])[len(tokens) - 1 :]
                if candidates == says[:-1] and len(candidates) >= len(best):
                    best = candidates
            emitted = [*best, self.target([*tokens, *best])[-1]][: end - len(tokens)]
            tokens += emitted
            steps.append(Step(drafted=len(fitting), emitted=len(emitted)))
        return tokens[len(prompt) :], steps


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("medusa")
    model = reference_model("llama_gqa", seed=1, **SIZES)
    engine = packed(load_model(write_checkpoint(folder / "model", model)))
    tensors = fitted_heads(model, engine, 5)
    heads = write_heads(folder / "heads", tensors, claimed=2)  # as published: config.json says 2, the weights have 5
    accuracies = [[0.5, 0.2, 0.1], [0.4, 0.1, 0.1], [0.2, 0.1, 0.0], [0.1, 0.1, 0.0], [0.1, 0.0, 0.0]]
    (heads / CALIBRATION).write_text(json.dumps({"accuracies": accuracies}))
    return model, engine, heads, tensors


def medusa(engine: Llama, folder: Path, **changes: Any) -> Medusa:
    settings = {"heads": 4, "tree": "mc_sim_7b_63", "nodes": 12, "calibration": None, **changes}
    return Medusa(engine, checkpoint=str(folder), **settings)


@pytest.mark.parametrize("tree", ["chain", "mc_sim_7b_63", "auto", OWN_TREE, [[0], [2]]], ids=str)
def test_steps_equal_the_reference(pair, tree: Any) -> None:
    model, engine, folder, tensors = pair
    method = medusa(engine, folder, tree=tree)
    named = {"chain": [[0] * d for d in (1, 2, 3, 4)], "mc_sim_7b_63": MC_SIM_7B_63, "auto": method.nodes}
    paths = named[tree] if isinstance(tree, str) else tree
    assert tree != "auto" or len(paths) == 12
    decoder, reference = Decoder(engine, method), Reference(model, tensors, paths)
    for prompt in PROMPTS[:1] if tree == "mc_sim_7b_63" else PROMPTS:
        result = decoder.generate(torch.tensor(prompt), 24)
        tokens, steps = reference.generate(prompt, 24, 96)
        assert len(result.tokens) == len(tokens) and list(result.tokens) == tokens
        assert list(result.steps) == steps


@pytest.mark.parametrize("tree", ["chain", OWN_TREE], ids=str)
def test_heads_over_a_draft_vocabulary_equal_the_reference(pair, tmp_path: Path, tree: Any) -> None:
    """The same heads without some rows: what they choose is what they would have chosen among the others."""
    model, engine, _, tensors = pair
    ids = torch.tensor([token for token in range(48) if token % 5])
    small = {name: tensor[ids] if name.endswith("1.weight") else tensor for name, tensor in tensors.items()}
    folder = write_heads(tmp_path, {**small, "d2t": ids - torch.arange(len(ids))})
    paths = tree if tree != "chain" else [[0] * depth for depth in (1, 2, 3, 4)]

    class Subset(Reference):
        def ranking(self, tokens: list[int], head: int) -> list[int]:
            return [token for token in super().ranking(tokens, head) if token % 5]

    reference = Subset(model, tensors, paths)
    for prompt in PROMPTS:
        result = Decoder(engine, medusa(engine, folder, tree=tree)).generate(torch.tensor(prompt), 24)
        assert (list(result.tokens), list(result.steps)) == reference.generate(prompt, 24, 96)
    with pytest.raises(UserError, match=r"method.tree: takes 39 choices of 38 drafted tokens"):
        medusa(engine, folder, tree=[[38]])
    write_heads(tmp_path, {**tensors, "d2t": ids - torch.arange(len(ids))})
    with pytest.raises(UserError, match=r"a vocabulary of 48, the target and d2t have hidden size 64 and .* of 38"):
        medusa(engine, folder)


def test_the_published_tree_in_a_context_that_fills_up(pair) -> None:
    model, engine, folder, tensors = pair
    result = Decoder(engine, medusa(engine, folder)).generate(torch.tensor(PROMPTS[2]), 24)
    assert (list(result.tokens), list(result.steps)) == Reference(model, tensors, MC_SIM_7B_63).generate(
        PROMPTS[2], 24, 96
    )
    assert {step.drafted for step in result.steps[-3:]} < {63, 61, 38, 10} and result.stop == "context"


def test_the_heads_are_right_sometimes_and_trees_differ(pair) -> None:
    _, engine, folder, _ = pair

    def emitted(tree: str) -> list[int]:
        decoder = Decoder(engine, medusa(engine, folder, tree=tree))
        return [step.emitted for prompt in PROMPTS for step in decoder.generate(torch.tensor(prompt), 60).steps]

    chain, tree = emitted("chain"), emitted("mc_sim_7b_63")
    assert len(set(tree)) >= 4 and len(set(chain)) >= 3, "the reference test would prove little"
    assert len(tree) < len(chain) and sum(tree) == sum(chain)


def test_chain_and_tree_differ_on_joey() -> None:
    joey = packed(load_model(ASSETS, device="cpu"))
    chat, questions = Chat(ASSETS), read_questions(ASSETS / "question.jsonl", {}, [])[::25]  # of three subtasks
    prompts = [torch.tensor(chat.prompt_ids([Message("user", question.turns[0])])) for question in questions]
    rates = []
    for tree in ("chain", "mc_sim_7b_63"):
        decoder = Decoder(joey, medusa(joey, ASSETS / "medusa", tree=tree))
        steps = [step.emitted for prompt in prompts for step in decoder.generate(prompt, 64).steps]
        rates.append(sum(steps) / len(steps))
    assert 1.2 < rates[0] < rates[1] < 5


def test_a_step_is_one_target_pass_over_a_tree_built_once(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, folder, _ = pair
    decoder = Decoder(engine, medusa(engine, folder))
    passes: list[int] = []
    through = engine.through
    monkeypatch.setattr(engine, "through", lambda u, rows, *a: (passes.append(len(rows[0])), through(u, rows, *a))[1])
    monkeypatch.setattr(draft.Tree, "build", lambda *_: pytest.fail("a tree was laid out while decoding"))
    result = decoder.generate(torch.tensor(PROMPTS[0]), 30)
    assert passes[1:] == [64] * len(result.steps)


def test_tokens_stop_at_eos_anywhere_in_a_block(pair) -> None:
    _, engine, folder, _ = pair
    prompt = torch.tensor(PROMPTS[0])
    for eos in sorted(set(Decoder(engine, Vanilla(engine)).generate(prompt, 30).tokens)):
        ending = Llama(replace(engine.config, eos_token_ids=(eos,)), engine.weights)
        plain = Decoder(ending, Vanilla(ending)).generate(prompt, 30)
        for tree in ("chain", "mc_sim_7b_63"):
            result = Decoder(ending, medusa(ending, folder, tree=tree)).generate(prompt, 30)
            assert (result.tokens, result.stop) == (plain.tokens, plain.stop)
            assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens)


def test_nearly_full_contexts(pair) -> None:
    _, engine, folder, _ = pair
    prompt = torch.tensor(PROMPTS[1])
    for context in range(28, 40):
        plain = Decoder(engine, Vanilla(engine), context=context).generate(prompt, 100)
        for tree in ("chain", "mc_sim_7b_63"):
            result = Decoder(engine, medusa(engine, folder, tree=tree), context=context).generate(prompt, 100)
            assert (result.tokens, result.stop) == (plain.tokens, plain.stop)


def test_every_sequence_starts_afresh(pair) -> None:
    _, engine, folder, _ = pair
    shared = Decoder(engine, medusa(engine, folder))
    for prompt in PROMPTS:
        fresh = Decoder(engine, medusa(engine, folder))
        assert shared.generate(torch.tensor(prompt), 40) == fresh.generate(torch.tensor(prompt), 40)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_heads_compute_what_the_published_ones_do(tmp_path: Path, kind: str, layers: int) -> None:
    tensors, target = random_heads(3, layers=layers), tiny_llama(vocab_size=48)
    folder = write_heads(tmp_path, {name: t.half() for name, t in tensors.items()}, claimed=3, layers=layers)
    if kind == "safetensors":
        (folder / "medusa_lm_head.pt").unlink()
        save_file({name: t.half() for name, t in tensors.items()}, folder / "medusa_lm_head.safetensors")
    heads = Heads.load(folder, target, 2)
    halves = {name: t.half().float() for name, t in tensors.items()}
    state = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([block(halves, k, state, layers) @ halves[f"{k}.{layers}.weight"].T for k in (0, 1)])
    torch.testing.assert_close(heads(state), expected)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in heads.parameters())


def test_parameters_are_counted_as_the_paper_counts(pair) -> None:
    _, engine, folder, _ = pair
    assert medusa(engine, folder).extra_parameters == 4 * (64 * 64 + 64 + 48 * 64)
    assert medusa(engine, folder, tree=[[0], [1], [1, 0]]).extra_parameters == 2 * (64 * 64 + 64 + 48 * 64)
    at_7b = sum(parameter.numel() for parameter in Heads(4, hidden=4096, vocab=32_000).parameters())
    assert round(at_7b / 1e6) == 591


def damaged(tensors: Tensors, how: str) -> Tensors:
    if how == "missing":
        return {name: t for name, t in tensors.items() if name != "2.0.linear.bias"}
    if how == "extra":
        return {**tensors, "medusa.weight": torch.zeros(2)}
    return {**tensors, "1.0.linear.weight": torch.zeros(64, 63)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"the weights do not fit config.json: missing 2\.0\.linear\.bias$"),
        ("extra", r"the weights do not fit config.json: extra medusa\.weight$"),
        ("mis-shaped", r"mis-shaped 1\.0\.linear\.weight \[64, 63\] instead of \[64, 64\]$"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, how: str, message: str) -> None:
    folder = write_heads(tmp_path, damaged(random_heads(), how))
    with pytest.raises(UserError, match=message):
        medusa(tiny_llama(vocab_size=48), folder)


@pytest.mark.parametrize(
    ("sizes", "theirs"),
    [
        ({"hidden": 32}, "hidden size 32 and a vocabulary of 48"),
        ({"vocab": 50}, "hidden size 64 and a vocabulary of 50"),
    ],
)
def test_heads_of_another_model_are_refused(tmp_path: Path, sizes: dict[str, int], theirs: str) -> None:
    folder = write_heads(tmp_path, random_heads(**sizes))
    ours = "the target has hidden size 64 and a vocabulary of 48"
    with pytest.raises(UserError, match=f"method.checkpoint=.*: heads for {theirs}, {ours}"):
        medusa(tiny_llama(vocab_size=48), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "method.heads=5: must be between 1 and the 4 heads in"),
        ({"heads": 5, "tree": [[0]]}, "method.heads=5: must be between 1 and the 4 heads in"),
        ({"heads": 0}, "method.heads=0: must be at least 1"),
        ({"heads": 3}, r"method.tree: .* is 4 deep, there are 3 heads"),
        ({"tree": [[0], [0]]}, r"method.tree: \[0\] stands there twice"),
        ({"tree": "auto"}, "method.calibration=.*: no such file"),
        ({"tree": "auto", "calibration": "/nowhere/it"}, "method.calibration=/nowhere/it: no such file"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_heads(tmp_path, random_heads())
    with pytest.raises(UserError, match=message):
        medusa(tiny_llama(vocab_size=48), folder, **changes)


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=48)
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        medusa(target, tmp_path)
    folder = write_heads(tmp_path, random_heads())
    (folder / "medusa_lm_head.pt").unlink()
    with pytest.raises(UserError, match=r"no heads in this folder; wanted: medusa_lm_head\.pt"):
        medusa(target, folder)
    (folder / "medusa_lm_head.pt").write_bytes(b"PK\x03\x04 not a zip archive")
    with pytest.raises(UserError, match=r"medusa_lm_head\.pt: not readable as a weight file"):
        medusa(target, folder)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(UserError, match=r"config\.json needs medusa_num_heads, a positive integer"):
        medusa(target, folder)
