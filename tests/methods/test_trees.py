"""Medusa's trees: the published one, a user's own, and those made from measured accuracies."""

from __future__ import annotations

import hashlib
import itertools
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.errors import UserError
from methods.trees import MC_SIM_7B_63, ChoiceTree, by_depth, greedy_tree, read_tree

CPU = torch.device("cpu")
ACCURACIES = [[0.6, 0.2, 0.1, 0.04], [0.4, 0.25, 0.05, 0.01], [0.3, 0.1, 0.1, 0.0]]
# Of the sorted list in the Medusa repository (commit 11af0aa, medusa/model/medusa_choices.py), written as JSON.
PUBLISHED_SHA256 = "da6baaf9f76901e4cb819e2a6b03a94c84738ad83c3976999d303538c032739c"


def read(tree: Any, calibration: Path = Path("nowhere"), **changes: int) -> list[list[int]]:
    settings = {"heads": 4, "vocab_size": 48, "nodes": 63, **changes}
    return [list(node) for node in read_tree(tree, calibration=calibration, **settings)]


def test_the_published_tree_is_the_published_one() -> None:
    assert len(MC_SIM_7B_63) == 63
    published = json.dumps(sorted(map(list, MC_SIM_7B_63)))
    assert hashlib.sha256(published.encode()).hexdigest() == PUBLISHED_SHA256


def test_a_chain_takes_the_first_choice_of_every_head() -> None:
    assert read("chain") == [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]
    assert read("chain", heads=1) == [[0]]


@pytest.mark.parametrize("nodes", [[(0,)], [(3,), (3, 1), (0,), (3, 1, 2), (0, 4)], list(MC_SIM_7B_63)])
def test_layout_leads_every_node_to_its_token(nodes: list[tuple[int, ...]]) -> None:
    width = 11
    for depth, tree in enumerate(by_depth(nodes, width, CPU), 1):
        kept = [node for node in nodes if len(node) <= depth]
        choices = torch.arange(4 * width).view(4, width)
        tokens = choices.view(-1)[tree.index].tolist()
        assert tokens == [choices[len(node) - 1, node[-1]].item() for node in kept]
        for row, node in enumerate(kept, 1):
            ancestors = {0} | {kept.index(node[:k]) + 1 for k in range(1, len(node) + 1)}
            assert set(tree.shape.mask[row].nonzero().flatten().tolist()) == ancestors
            assert tree.shape.depths[row] == len(node)
    assert depth == max(map(len, nodes)) and kept == nodes


def test_a_greedy_tree_is_the_best_of_its_size() -> None:
    """Against all nodes there are, ranked by the product of the accuracies on their path."""
    everything = [node for depth in (1, 2, 3) for node in itertools.product(range(4), repeat=depth)]
    likely = {node: prod(ACCURACIES[i][rank] for i, rank in enumerate(node)) for node in everything}
    ranked = sorted(likely.values(), reverse=True)
    for count in (1, 2, 5, 16, 40):
        nodes = greedy_tree(ACCURACIES, count)
        assert len(set(nodes)) == len(nodes) == count
        assert sum(likely[node] for node in nodes) == pytest.approx(sum(ranked[:count]))
        ChoiceTree.build(nodes, 4, CPU)  # every node stands after its parent
    assert len(greedy_tree(ACCURACIES, 10_000)) == 4 + 16 + 48, "nodes that are never right are left out"


def test_auto_reads_the_calibration_file(tmp_path: Path) -> None:
    file = tmp_path / "head_accuracies.json"
    file.write_text(json.dumps({"accuracies": ACCURACIES}))
    assert read("auto", file, heads=3, nodes=4) == [[0], [0, 0], [1], [0, 1]]
    assert read("auto", file, heads=1, nodes=9) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("mc_sim_7b_36", "method.tree=mc_sim_7b_36: unknown; did you mean mc_sim_7b_63"),
        (3, "method.tree=3: must be a name or a list of paths"),
        ([[0], 1], "must be a name or a list of paths"),
        ([[0], []], "must be a name or a list of paths"),
        ([[0], ["0"]], "must be a name or a list of paths"),
        ([[0], [-1]], "must be a name or a list of paths"),
        ([[True]], "must be a name or a list of paths"),
        ([], "method.tree=.*: must have at least one node"),
        ([[0], [1], [0]], r"method.tree: \[0\] stands there twice"),
        ([[0], [1, 0], [1]], r"method.tree: \[1, 0\] stands there before its parent \[1\]"),
        ([[0], [1, 0]], r"method.tree: \[1, 0\] stands there without its parent \[1\]"),
        ([[0], [0, 0], [0, 0, 0]], r"method.tree: \[0, 0, 0\] is 3 deep, there are 2 heads"),
        ("mc_sim_7b_63", r"is 4 deep, there are 2 heads"),
        ([[48]], r"method.tree: \[48\] takes choice 48 of 48 tokens"),
    ],
)
def test_trees_that_are_none_are_refused_in_one_line(tree: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tree, heads=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (None, {}, "method.calibration=.*: no such file; bench.train method=medusa writes head_accuracies.json"),
        ("{", {}, "not readable as JSON"),
        ("{}", {}, "accuracies must be a list of shares"),
        ('{"accuracies": [0.5]}', {}, "accuracies must be a list of shares"),
        ('{"accuracies": [[1.5]]}', {}, "accuracies must be a list of shares"),
        ('{"accuracies": [["x"]]}', {}, "accuracies must be a list of shares"),
        ('{"accuracies": [[0.5], [0.2]]}', {"heads": 3}, "measured for 2 heads, 3 are used"),
        ('{"accuracies": []}', {"heads": 1}, "measured for 0 heads, 1 are used"),
        ('{"accuracies": [[0, 0], [0.5, 0]]}', {}, "no choice of the first head was ever right"),
        ('{"accuracies": [[0.5], [0.2]]}', {"nodes": 0}, "method.nodes=0: must be at least 1"),
    ],
)
def test_calibration_files_that_are_none_are_refused(
    tmp_path: Path, content: str | None, changes: dict[str, int], message: str
) -> None:
    file = tmp_path / "head_accuracies.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read("auto", file, **{"heads": 2, **changes})
    assert "\n" not in str(error.value)
