"""Hydra against a slow reference: transformers' layer for the prefix, one head after the other, no cache."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.decoder import Decoder
from methods.engine.llama import Llama, ModelConfig
from methods.errors import UserError
from methods.hydra import Hydra, HydraModel
from methods.sam import Sam
from methods.trees import MC_SIM_7B_63, Node
from tests.methods.eagle_reference import Paths, Recording, ranked
from tests.tiny import tiny_llama

VOCAB, CONTEXT = 16, 80  # so few tokens that ten choices often hold the right one
PROMPTS = ([5, 9, 11, 3], [7], [i % VOCAB for i in range(70)])  # the last fills the context
OWN_TREE = [[1], [0], [0, 2], [0, 0], [1, 0], [0, 0, 1], [3]]


def tensors_of(
    target: ModelConfig, *, architecture: str = "prefix-mlp", heads: int = 4, layers: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """A published checkpoint's tensors, random, the repeated block under all its names, the unused embedding too."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = target.hidden_size, target.intermediate_size, target.vocab_size
    first, distance, end = (0, 1, "") if architecture == "mlp" else (1, 2, ".1")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    tensors: dict[str, Tensor] = {}
    for k in range(heads):
        for part in ("linear", "res_connection"):
            tensors[f"hydra_mlp.{k}.{first}.{part}.weight"] = drawn(hidden, (k + 2) * hidden)
            tensors[f"hydra_mlp.{k}.{first}.{part}.bias"] = drawn(hidden)
        weight, bias = drawn(hidden, hidden), drawn(hidden)
        for block in range(1, layers):
            tensors[f"hydra_mlp.{k}.{first + distance * block}.linear.weight"] = weight
            tensors[f"hydra_mlp.{k}.{first + distance * block}.linear.bias"] = bias
        tensors[f"hydra_lm_head.{k}{end}.weight"] = drawn(vocab, hidden)
        tensors[f"hydra_lm_head.{k}{end}.bias"] = drawn(vocab)
    if architecture == "mlp":
        return tensors
    keys = target.num_kv_heads * target.head_dim
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    prefix = {f"layers.0.{name}.weight": drawn(*shape) for name, shape in layer.items()}
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        prefix[f"{name}.weight"] = 1 + drawn(hidden)
    prefix["embed_tokens.weight"] = drawn(vocab, hidden)
    return tensors | {f"prefix_embeding_layer.{name}": tensor for name, tensor in prefix.items()}


def config_of(**changes: Any) -> dict[str, Any]:
    config = {"hydra_num_heads": 4, "hydra_num_layers": 4, "hydra_head_arch": "prefix-mlp", "grounded_heads": True}
    return {**config, "hidden_state_offset": 0, "base_model_name_or_path": "x", **changes}


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "hydra_lm_head.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plain_heads(folder: Path, target: ModelConfig) -> Path:
    """A checkpoint of heads without a prefix layer."""
    return write(folder, tensors_of(target, architecture="mlp"), config_of(hydra_head_arch="mlp"))


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    return {"checkpoint": write(folder, tensors_of(tiny_llama(vocab_size=48).config), config_of())}


class Reference:
    """The published algorithm, computing everything anew from the tokens at every point; in float64."""

    def __init__(self, target: Llama, tensors: dict[str, Tensor], *, architecture: str, layers: int) -> None:
        import transformers

        self.target, self.layers, self.plain = target, layers, architecture == "mlp"
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        if self.plain:
            return
        shape = target.config
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=1,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            rms_norm_eps=shape.norm_eps,
            max_position_embeddings=CONTEXT,
            pad_token_id=None,
        )
        self.prefix = transformers.LlamaModel(config).double().eval().requires_grad_(False)
        own = {n.partition(".")[2]: t for n, t in self.tensors.items() if n.startswith("prefix_embeding_layer.")}
        self.prefix.load_state_dict(own)

    def features(self, tokens: list[int]) -> Tensor:
        given = torch.tensor(tokens)
        return self.target.norm(self.target.run(self.target.embed(given), torch.arange(len(given)), None, slice(None)))

    def says(self, tokens: list[int]) -> int:
        return int(self.target.lm_head(self.features(tokens)[-1:]).argmax())

    def state(self, tokens: list[int]) -> Tensor:
        """What the heads read: of the tokens before the pending one."""
        features = self.features(tokens[:-1])
        return features[-1] if self.plain else self.prefix(inputs_embeds=features[None]).last_hidden_state[0, -1]

    def logits(self, state: Tensor, following: list[int]) -> Tensor:
        """Of the head that knows the pending token and so many drafted ones."""
        k = len(following) - 1
        joined = torch.cat([state, *self.target.embed(torch.tensor(following))])
        first, distance, end = (0, 1, "") if self.plain else (1, 2, ".1")
        hidden = self._linear(f"hydra_mlp.{k}.{first}.res_connection", joined)
        hidden = hidden + F.silu(self._linear(f"hydra_mlp.{k}.{first}.linear", joined))
        for block in range(1, self.layers):
            hidden = hidden + F.silu(self._linear(f"hydra_mlp.{k}.{first + distance * block}.linear", hidden))
        return self._linear(f"hydra_lm_head.{k}{end}", hidden)

    def draft(self, tokens: list[int], room: int, nodes: list[Node]) -> Paths:
        state, drafted = self.state(tokens), {(): ()}
        for node in sorted(nodes, key=len):
            if len(node) <= room:
                above = drafted[node[:-1]]
                drafted[node] = (*above, ranked(self.logits(state, [tokens[-1], *above]).float())[node[-1]])
        return frozenset(drafted.values()) - {()}

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return F.linear(states, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])


def target_of(kv_heads: int) -> Llama:
    shape = {"vocab_size": VOCAB, "context": CONTEXT, "num_layers": 3, "num_kv_heads": kv_heads, "eos_token_ids": ()}
    return tiny_llama(kv_heads, dtype=torch.float64, **shape)


@pytest.mark.parametrize(
    ("architecture", "layers", "kv_heads", "tree"),
    [
        ("prefix-mlp", 4, 2, "mc_sim_7b_63"),
        ("prefix-mlp", 4, 4, OWN_TREE),
        ("prefix-mlp", 1, 1, "chain"),
        ("mlp", 3, 2, OWN_TREE),
    ],
    ids=str,
)
def test_every_draft_and_step_equal_the_reference(
    tmp_path: Path, architecture: str, layers: int, kv_heads: int, tree: Any
) -> None:
    target = target_of(kv_heads)
    tensors = tensors_of(target.config, architecture=architecture, layers=layers)
    config = config_of(hydra_head_arch=architecture, hydra_num_layers=layers)
    reference = Reference(target, tensors, architecture=architecture, layers=layers)
    method = Hydra(target, checkpoint=write(tmp_path, tensors, config), tree=tree)
    named = {"mc_sim_7b_63": MC_SIM_7B_63, "chain": [(0,) * depth for depth in range(1, 5)]}
    nodes = list(named[tree]) if isinstance(tree, str) else [tuple(node) for node in tree]
    longest = 0
    for prompt in PROMPTS:
        recording = Recording(method)
        result = Decoder(target, recording).generate(torch.tensor(prompt), 14)
        ends = len(prompt) + len(result.tokens)
        for (tokens, room, found), step in zip(recording.drafts, result.steps, strict=True):
            assert found == reference.draft(tokens, room, nodes), f"after {len(tokens)} tokens"
            emitted = [reference.says(tokens)]
            while tuple(emitted) in found:
                emitted.append(reference.says([*tokens, *emitted]))
            assert step.emitted == len(emitted[: ends - len(tokens)]) and step.drafted == len(found)
            longest = max(longest, step.emitted)
    assert longest > 1


def test_passes_that_another_method_drafted_are_caught_up_with(tmp_path: Path) -> None:
    target = target_of(2)
    tensors = tensors_of(target.config)
    reference = Reference(target, tensors, architecture="prefix-mlp", layers=4)
    recording = Recording(Hydra(target, checkpoint=write(tmp_path, tensors, config_of()), tree=OWN_TREE))
    mixed = Sam(target, predict=6, threshold=2, bias=0, static=None, fallback=recording)
    result = Decoder(target, mixed).generate(torch.tensor([3, 9, 3, 9, 3]), 50)
    lengths = [len(tokens) for tokens, _, _ in recording.drafts]
    assert len(lengths) < len(result.steps)
    assert max(after - before for before, after in pairwise(lengths)) > 1
    for tokens, room, found in recording.drafts:
        assert found == reference.draft(tokens, room, [tuple(node) for node in OWN_TREE])


def test_size_of_the_published_heads() -> None:
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=1,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        norm_eps=1e-6,
        context=2048,
    )
    from methods.engine.checkpoint import empty_weights

    with torch.device("meta"):
        target = Llama(config, empty_weights(config, torch.float16, torch.device("meta")))
        model = HydraModel(target, architecture="prefix-mlp", heads=4, layers=4, dtype=torch.float16)
    assert round(model.extra_parameters / 1e7) == 126  # 1.26 billion


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hydra_num_heads": 0}, "config.json says hydra_num_heads=0; valid: 1 to 64"),
        ({"hydra_num_layers": "4"}, "config.json says hydra_num_layers='4'; valid: 1 to 64"),
        ({"hydra_head_arch": "eagle-attn"}, "hydra_head_arch='eagle-attn' is not supported; valid: mlp, prefix-mlp"),
        ({"grounded_heads": False}, "heads that are not grounded are Medusa's"),
        ({"hidden_state_offset": 1}, "hidden_state_offset=1 is not supported; 0 is"),
        ({"hydra_num_heads": 3}, "hydra_"),
        ({"hydra_num_layers": 2}, "hydra_mlp."),
        ({"hydra_head_arch": "mlp"}, "hydra_"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    target = tiny_llama(vocab_size=48)
    folder = write(tmp_path, tensors_of(target.config), config_of(**changes))
    with pytest.raises(UserError) as refused:
        Hydra(target, checkpoint=folder, tree="chain")
    assert said in str(refused.value) and str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("hydra_mlp.2.1.linear.bias", None),
        ("prefix_embeding_layer.norm.weight", None),
        ("prefix_embedding_layer.norm.weight", (64,)),
        ("hydra_lm_head.0.1.weight", (47, 64)),
        ("hydra_mlp.1.5.linear.weight", (64, 64)),
    ],
    ids=str,
)
def test_a_tensor_that_lacks_or_is_another_is_one_line(tmp_path: Path, name: str, shape: Any) -> None:
    target = tiny_llama(vocab_size=48)
    tensors = tensors_of(target.config)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.ones(shape)
    with pytest.raises(UserError) as refused:
        Hydra(target, checkpoint=write(tmp_path, tensors, config_of()), tree="chain")
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_copies_of_the_targets_embedding_are_left_alone(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=48)
    tensors = tensors_of(target.config)
    copy = {"input_embed_fn.weight": torch.full((48, 64), torch.nan)}
    folders = [write(tmp_path / str(n), tensors | more, config_of()) for n, more in enumerate(({}, copy))]
    wanted, found = (
        Decoder(target, Hydra(target, checkpoint=folder, tree="chain")).generate(torch.tensor([3, 20, 3]), 12)
        for folder in folders
    )
    assert (found.tokens, found.steps) == (wanted.tokens, wanted.steps)
    odd = write(tmp_path / "odd", tensors | {"input_embed_fn.weight": torch.ones(47, 64)}, config_of())
    with pytest.raises(UserError, match=r"mis-shaped input_embed_fn\.weight"):
        Hydra(target, checkpoint=odd, tree="chain")


def test_aliases_may_be_absent_and_a_tree_may_not_be_deeper_than_the_heads(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=48)
    tensors = {n: t for n, t in tensors_of(target.config).items() if ".5." not in n and ".7." not in n}
    folder = write(tmp_path, tensors, config_of())
    assert Hydra(target, checkpoint=folder, tree="chain").max_rows == 5
    with pytest.raises(UserError, match=r"method.tree: \[0, 0, 0, 0, 0\] is 5 deep, there are 4 heads"):
        Hydra(target, checkpoint=folder, tree=[[0] * depth for depth in range(1, 6)])
    with pytest.raises(UserError, match=r"method\.tree=vine: unknown"):
        Hydra(target, checkpoint=folder, tree="vine")
