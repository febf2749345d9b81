"""The shape of a draft: parents, depths, mask and paths, against a walk in plain Python."""

from __future__ import annotations

import pytest
import torch

from methods.draft import Draft, Tree

CPU = torch.device("cpu")


@pytest.mark.parametrize("parents", [[], [-1], [-1, 0, 1, 2], [-1, -1, -1], [-1, 0, 0, -1, 3, 1, 5]])
def test_tree_matches_a_walk_from_each_row(parents: list[int]) -> None:
    tree = Tree.build(parents, CPU)
    deepest = max(tree.depths.tolist())
    for row in range(len(parents) + 1):
        up = [row]
        while up[-1] != 0:
            up.append(parents[up[-1] - 1] + 1)
        down = up[::-1]
        assert tree.depths[row] == len(down) - 1
        assert tree.mask[row].nonzero().flatten().tolist() == sorted(down)
        assert tree.paths[row].tolist() == down + [row] * (deepest + 1 - len(down))
    assert tree.size == len(parents)
    assert tree.is_chain == (parents == list(range(-1, len(parents) - 1)))


def test_chains_are_built_once() -> None:
    assert Tree.chain(3, CPU) is Tree.chain(3, CPU)


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-2], [1, -1]])
def test_candidate_before_its_parent_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="after its parent"):
        Tree.build(parents, CPU)


def test_empty_draft_is_a_plain_step() -> None:
    draft = Draft.empty(CPU)
    assert draft.tree.size == 0 and draft.tokens.shape == (0,)


@pytest.mark.parametrize("deepest", [6, 9])
def test_a_tree_made_on_the_device_is_the_same(deepest: int) -> None:
    generator = torch.Generator().manual_seed(deepest)
    for size in (1, 5, 30):
        depths, parents = [0], []
        for row in range(size):
            shallow = [place for place in range(row + 1) if depths[place] < 6]
            place = shallow[int(torch.randint(len(shallow), (), generator=generator))]
            parents.append(place - 1)
            depths.append(depths[place] + 1)
        built, made = Tree.build(parents, CPU), Tree.on_device(torch.tensor(parents), deepest)
        for name in ("parents", "depths", "mask"):
            assert torch.equal(getattr(built, name), getattr(made, name)), name
        width = built.paths.shape[1]
        assert torch.equal(built.paths, made.paths[:, :width])
        assert (made.paths[:, width:] == torch.arange(size + 1)[:, None]).all()
