"""Trees over the top choices of several prediction heads, as Medusa drafts them.

A node is the path to it: (2, 0) follows the third choice of the first head with the first choice of the second.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.draft import Tree, upload
from methods.engine.config import read_json
from methods.errors import UserError, check_sizes, nearest

Node = tuple[int, ...]

NAMES = ("chain", "mc_sim_7b_63", "auto")
CALIBRATION = "head_accuracies.json"  # beside the heads; bench.train writes it

# The 63 nodes of mc_sim_7b_63 (Medusa's repository, medusa/model/medusa_choices.py; found by simulation on Vicuna-7B):
# of every node that has children, how many. They are its first choices, from 0 on.
_CHILDREN_MC_SIM_7B_63 = (
    "-:10 0:10 1:7 2:3 3:2 4:1 5:1 6:1 7:1 8:1 9:1 00:10 01:3 02:2 03:1 04:1 05:1 06:1 07:1 10:2 20:1 000:2"
)


def _from_children(text: str) -> tuple[Node, ...]:
    counts = (entry.split(":") for entry in text.split())
    return tuple((*map(int, node.strip("-")), choice) for node, count in counts for choice in range(int(count)))


MC_SIM_7B_63 = _from_children(_CHILDREN_MC_SIM_7B_63)

# The 80 nodes of version 2.2.2 (Token Recycling's repository, model/recycling/tree_template_.py), in its order.
RECYCLING_2_2_2 = _from_children(
    "-:8 0:8 1:4 2:3 3:2 4:1 5:1 6:1 7:1 00:8 01:3 02:2 03:1 04:1 05:1 06:1 07:1 10:2 11:1 20:1 30:1 40:1 50:1 "
    "000:5 001:2 002:1 003:1 004:1 010:1 020:1 100:1 200:1 300:1 0000:3 0001:1 0002:1 0010:1 0100:1 1000:1 "
    "00000:2 00010:1"
)


# The 25 nodes that EAGLE's repository calls mc_sim_7b_63 as well (model/choices.py there), by depth.
EAGLE_25 = _from_children("-:4 0:3 1:2 2:2 3:1 00:3 01:2 02:2 10:1 000:3 0000:2")


@dataclass(frozen=True)
class ChoiceTree:
    """A tree laid out for use: its shape, and for each node where its token stands among the heads' choices."""

    shape: Tree
    index: Tensor  # [n] into the flattened choices [heads, width]

    @classmethod
    def build(cls, nodes: Sequence[Node], width: int, device: torch.device) -> ChoiceTree:
        """From nodes of which each stands after its parent."""
        number = {node: i for i, node in enumerate(nodes)}
        parents = [number[node[:-1]] if len(node) > 1 else -1 for node in nodes]
        index = torch.tensor([(len(node) - 1) * width + node[-1] for node in nodes], device=device)
        return cls(shape=Tree.build(parents, device), index=index)


@dataclass(frozen=True)
class Level:
    """One level of a static tree, laid out for drafting; only nodes that have children run."""

    places: Tensor  # [n] of its nodes among the choices [nodes run above, width]
    runs: Tensor  # [r] those of them that run
    above: Tensor  # [r] their parents among the nodes run above
    sees: Tensor  # [r, nodes run so far, these included] bool

    @classmethod
    def build_all(cls, nodes: Sequence[Node], width: int, device: torch.device) -> list[Level]:
        """All levels of a tree that is ordered by depth."""
        inner, sees = {node[:-1] for node in nodes}, np.zeros((1, 0), dtype=bool)
        above: list[Node] = [()]
        levels = []
        for depth in range(1, 1 + len(nodes[-1])):
            level = [node for node in nodes if len(node) == depth]
            running = [node for node in level if node in inner]
            parents = np.array([above.index(node[:-1]) for node in running], dtype=np.int64)
            sees = np.concatenate((sees[parents], np.eye(len(running), dtype=bool)), 1)
            places = [width * above.index(node[:-1]) + node[-1] for node in level]
            runs = [level.index(node) for node in running]
            levels.append(cls(*(upload(part, device) for part in (places, runs, parents, sees))))
            above = running
        return levels


def by_depth(nodes: Sequence[Node], width: int, device: torch.device) -> list[ChoiceTree]:
    """The tree cut after 1, 2, ... levels: what fits when the context is nearly full."""
    deepest = max(map(len, nodes))
    return [
        ChoiceTree.build([node for node in nodes if len(node) <= depth], width, device)
        for depth in range(1, deepest + 1)
    ]


def read_tree(tree: Any, *, heads: int, vocab_size: int, nodes: int, calibration: Path) -> tuple[Node, ...]:
    """The nodes that `method.tree` asks for: a name (NAMES), or a list of paths, each after its parent.

    auto: at most `nodes` nodes, from the accuracies in the calibration file. Raises UserError for anything else, and
    for a tree that is deeper than the number of heads.
    """
    check_sizes(1, 64, heads=heads)
    if tree == "auto":
        return greedy_tree(read_accuracies(calibration, heads), nodes)
    named = {"chain": tuple((0,) * depth for depth in range(1, heads + 1)), "mc_sim_7b_63": MC_SIM_7B_63}
    chosen = pick_tree(tree, named, vocab_size, valid=NAMES)
    deepest = max(chosen, key=len)
    if len(deepest) > heads:
        raise UserError(f"method.tree: {list(deepest)} is {len(deepest)} deep, there are {heads} heads")
    return chosen


def pick_tree(
    tree: Any, named: Mapping[str, tuple[Node, ...]], vocab_size: int, *, valid: Sequence[str] = ()
) -> tuple[Node, ...]:
    """One of the named trees, or a list of paths, each after its parent. valid: what a message lists in place of named.

    Raises UserError for anything else, and for a choice beyond the vocabulary.
    """
    if isinstance(tree, str):
        if tree not in named:
            known = nearest(tree, valid or named)
            raise UserError(f"method.tree={tree}: unknown; {known}, or a list such as [[0],[0,0],[1]]")
        chosen = named[tree]
    else:
        chosen = _checked(tree)
    widest = max(chosen, key=max)
    if max(widest) >= vocab_size:
        raise UserError(f"method.tree: {list(widest)} takes choice {max(widest)} of {vocab_size} tokens")
    return chosen


def _checked(tree: Any) -> tuple[Node, ...]:
    """A user's own list of paths. Raises UserError unless every path is new and stands after its parent."""
    if not isinstance(tree, Sequence) or not all(_is_path(path) for path in tree):
        raise UserError(f"method.tree={tree}: must be a name or a list of paths such as [[0],[0,0],[1]]")
    nodes = [tuple(path) for path in tree]
    if not nodes:
        raise UserError("method.tree=[]: must have at least one node")
    seen: set[Node] = {()}
    for node in nodes:
        if node in seen:
            raise UserError(f"method.tree: {list(node)} stands there twice")
        if node[:-1] not in seen:
            where = "before" if node[:-1] in nodes else "without"
            raise UserError(f"method.tree: {list(node)} stands there {where} its parent {list(node[:-1])}")
        seen.add(node)
    return tuple(nodes)


def _is_path(path: Any) -> bool:
    if isinstance(path, str) or not isinstance(path, Sequence) or not path:
        return False
    return all(isinstance(choice, int) and not isinstance(choice, bool) and choice >= 0 for choice in path)


def greedy_tree(accuracies: Sequence[Sequence[float]], nodes: int) -> tuple[Node, ...]:
    """At most `nodes` nodes, each time the one most likely accepted (Medusa, arXiv 2401.10774, section 2.3.3).

    accuracies [heads][rank]: how often the head's choice of that rank is right. A node is accepted when all choices on
    its path are right, taken as independent. Nodes that are never right are left out.
    """
    check_sizes(nodes=nodes)
    frontier: list[tuple[float, Node]] = []

    def add_children(node: Node, likely: float) -> None:
        for rank, accuracy in enumerate(accuracies[len(node)] if len(node) < len(accuracies) else ()):
            if accuracy > 0:
                heapq.heappush(frontier, (-likely * accuracy, (*node, rank)))

    add_children((), 1.0)
    chosen: list[Node] = []
    while frontier and len(chosen) < nodes:
        negative, node = heapq.heappop(frontier)
        chosen.append(node)
        add_children(node, -negative)
    return tuple(chosen)


def read_accuracies(file: Path, heads: int) -> list[list[float]]:
    """Measured accuracies [heads][rank] from JSON {"accuracies": [[...], ...]}. Raises UserError for anything else."""
    if not file.is_file():
        remedy = f"bench.train method=medusa writes {CALIBRATION} beside the heads"
        raise UserError(f"method.calibration={file}: no such file; {remedy}")
    rows = read_json(file).get("accuracies")
    if not (isinstance(rows, list) and all(isinstance(row, list) and _are_shares(row) for row in rows)):
        raise UserError(f"method.calibration={file}: accuracies must be a list of shares from 0 to 1 for every head")
    if len(rows) < heads:
        raise UserError(f"method.calibration={file}: measured for {len(rows)} heads, {heads} are used")
    if not any(rows[0]):
        raise UserError(f"method.calibration={file}: no choice of the first head was ever right")
    return rows[:heads]


def _are_shares(row: list[Any]) -> bool:
    return all(isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1 for share in row)
