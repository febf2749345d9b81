"""Every file under conf/ composes, and what it names as a target takes exactly the keys that the file gives."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.utils import get_object

from bench.config import CONF, compose_config, plain
from bench.experiment import read_experiment
from methods.errors import UserError

FILES = sorted(CONF.rglob("*.yaml"))
# What a configuration leaves to the user.
REQUIRED = {"train": ["output=somewhere"], "custom": ["model.path=somewhere"]}
# A target that hands keys on: they must fit where they end up.
HANDS_ON_TO = {"bench.train.rest.load": "methods.rest.Rest"}


def name_of(file: Path) -> str:
    return str(file.relative_to(CONF))


def composed(entry: str, *overrides: str) -> dict[str, Any]:
    model = next((text.removeprefix("model=") for text in overrides if text.startswith("model=")), "")
    return plain(compose_config(entry, [*overrides, *REQUIRED.get(entry, []), *REQUIRED.get(model, [])]))


def configurations(file: Path) -> Iterator[dict[str, Any]]:
    """The whole configurations that a file takes part in. A folder that is not listed here is a failure."""
    group, name = "/".join(file.relative_to(CONF).parts[:-1]), file.stem
    if group == "":
        yield composed(name)
    elif group == "method":
        yield composed("config", f"method={name}")
    elif group == "model":
        yield composed("config", f"model={name}")
    elif group == "task":
        yield composed("config", f"task={name}")
    elif group == "launcher":
        yield composed("config", f"launcher={name}")
    elif group == "train":
        yield composed("train", f"method={name}")
    elif group == "recipe":
        model, _, method = name.rpartition("-")
        yield composed("train", f"model={model}", f"method={method}")
    elif group == "experiment":
        experiment = read_experiment(name, "joey")
        settings = [f"{key}={value}" for key, value in experiment.settings.items()]
        for cell in experiment.cells():
            yield composed("config", *[f"{key}={value}" for key, value in cell.items()], *settings)
    else:
        pytest.fail(f"{name_of(file)}: no one says how conf/{group} is composed")


def targets(tree: Any) -> Iterator[dict[str, Any]]:
    """Nodes that name a target, at any depth."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from targets(value)


def bind(node: dict[str, Any]) -> None:
    """Raises TypeError when a key is missing, or is none of the target's."""
    keys = {key: value for key, value in node.items() if key != "_target_"}
    for path in (node["_target_"], HANDS_ON_TO.get(node["_target_"])):
        if path is None:
            continue
        signature = inspect.signature(get_object(path))
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        assert not takes_all or path in HANDS_ON_TO, f"{path} takes any key: say where it hands them on to"
        # A method is given the target model besides; bench.session does that.
        signature.bind(**keys, **({"target": None} if "target" in signature.parameters else {}))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_configuration_composes_and_fits_its_target(file: Path) -> None:
    if name_of(file) == "launcher/slurm.yaml" and "Submitit" not in str(Plugins.instance().discover(Launcher)):
        with pytest.raises(UserError, match="submitit_slurm"):
            composed("config", "launcher=slurm")
        return
    seen = 0
    for config in configurations(file):
        seen += 1
        for node in targets(config):
            bind(node)
    assert seen, "composed nothing"


def test_every_model_has_the_keys_that_methods_refer_to() -> None:
    """So a method that composes with one model does with all."""

    def keys(tree: Any, prefix: str = "") -> set[str]:
        if not isinstance(tree, dict):
            return {prefix}
        return {name for key, value in tree.items() for name in keys(value, f"{prefix}.{key}")}

    files = (CONF / "model").glob("*.yaml")
    by_model = {file.stem: keys(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files}
    assert all(found == by_model["custom"] for found in by_model.values()), by_model


def test_a_key_that_no_target_takes_is_found() -> None:
    for target, keys in (("methods.kangaroo.Kangaroo", {"gama": 6}), ("bench.train.rest.load", {"max_spam": 16})):
        node = composed("config", "method=rest" if "rest" in target else "method=kangaroo")["method"]
        with pytest.raises(TypeError, match="got an unexpected keyword"):
            bind({**node, "_target_": target, **keys})


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_opens_with_the_command_that_uses_it(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    opening = lines[1] if lines[0].startswith("# @package") else lines[0]
    if file.parent.name == "recipe":  # chosen by model and method: its first line says what it is
        assert opening.startswith("# ")
        return
    module, _, rest = opening.removeprefix("# python -m ").partition(" ")
    assert opening.startswith("# python -m bench.") and get_object(module)
    group = {"": "", "train": "method", "experiment": "name"}.get(file.parent.name, file.parent.name)
    if file.parent != CONF and group != "launcher":
        assert f"{group}={file.stem}" in rest, opening
