"""Every file under conf/ composes, and what it names as a target takes exactly the keys that the file gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object

from bench.binder import bind
from bench.config import installed
from bench.experiment import read_experiment
from bench.places import CONF
from bench.settings import Distill, Run, Serve, Speed, Train
from bench.slurm import Slurm
from bench.types import settings_of
from methods.errors import UserError

FILES = sorted(CONF.rglob("*.yaml"))
# What a configuration leaves to the user.
REQUIRED = {
    "train": ["output=somewhere"],
    "distill": ["output=somewhere"],
    "serve": ["server.url=http://a", "server.baseline_url=http://b", "model.path=somewhere"],
    "custom": ["model.path=somewhere"],
}


def name_of(file: Path) -> str:
    return str(file.relative_to(CONF))


def composed(entry: str, *overrides: str) -> dict[str, Any]:
    """A whole configuration whose values are of the right type."""
    model = next((text.removeprefix("model=") for text in overrides if text.startswith("model=")), "")
    found = installed().compose(entry, [*overrides, *REQUIRED.get(entry, []), *REQUIRED.get(model, [])])
    if entry in ("speed", "serve"):
        settings_of({"speed": Speed, "serve": Serve}[entry], found.values)  # type: ignore[type-var]
    else:
        {"train": Train, "distill": Distill}.get(entry, Run).of(found)  # type: ignore[attr-defined]
    if "slurm" in found.values:
        settings_of(Slurm, found.values["slurm"])
    return found.values


def configurations(file: Path) -> Iterator[dict[str, Any]]:
    """The whole configurations that a file takes part in. A folder that is not listed here is a failure."""
    group, name = "/".join(file.relative_to(CONF).parts[:-1]), file.stem
    if group == "":
        yield composed(name)
    elif name.startswith("_"):  # part of others of its folder
        users = [other for other in file.parent.glob("*.yaml") if f"[{name}]" in other.read_text(encoding="utf-8")]
        yield from (found for user in users for found in configurations(user))
    elif group in ("method", "model", "launcher"):
        yield composed("config", f"{group}={name}")
    elif group == "questions":
        yield composed("config", f"questions={name}", "questions.source=somewhere")
    elif group == "sample":
        yield composed("config", f"model={name}")
    elif group == "train":
        yield composed("train", f"method={name}")
    elif group == "draft":
        method, _, model = name.partition("-")
        yield composed("config", f"model={model}", f"method={method}")
    elif group == "recipe":
        model, _, method = name.rpartition("-")
        yield composed("train", f"model={model}", f"method={method}")
    elif group == "experiment":
        experiment = read_experiment(installed(), name, "joey")
        settings = [f"{key}={value}" for key, value in experiment.settings.items()]
        for cell in experiment.cells():
            yield composed("config", *[f"{key}={value}" for key, value in cell.items()], *settings)
    else:
        pytest.fail(f"{name_of(file)}: no one says how conf/{group} is composed")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_configuration_composes_and_fits_its_target(file: Path) -> None:
    seen = 0
    for config in configurations(file):
        seen += 1
        for key in (key for key in ("method", "train", "loop") if "_target_" in config.get(key, {})):
            if key == "method" and "train" in config:
                continue  # what is trained has no draft yet
            try:
                bind(config[key], key)
            except UserError as error:
                assert "none is configured" in str(error)
                assert file.parent.name != "draft"
    assert seen, "composed nothing"


def test_no_model_repeats_anothers_lines() -> None:
    lines = [
        line.strip()
        for file in (CONF / "model").glob("*.yaml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("defaults:")
    ]
    assert [line for line, count in Counter(lines).items() if count > 1] == []


@pytest.mark.parametrize("method", ["kangaroo", "rest"])
def test_keys_that_no_target_takes_and_keys_that_lack_are_named_together(method: str) -> None:
    node = composed("config", f"method={method}")["method"]
    first = next(key for key in node if key != "_target_")
    changed = {key: value for key, value in node.items() if key != first} | {"gama": 6}
    with pytest.raises(UserError) as caught:
        bind(changed, "method")
    assert "method.gama: unknown; " in str(caught.value) and f"method.{first} is missing" in str(caught.value)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_opens_with_the_command_that_uses_it(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    opening = lines[1] if lines[0].startswith("# @package") else lines[0]
    if file.parent.name == "recipe":  # chosen by model and method: its first line says what it is
        assert opening.startswith("# ")
        return
    module, _, rest = opening.removeprefix("# python -m ").partition(" ")
    assert opening.startswith("# python -m bench.") and get_object(module)
    if file.stem.startswith("_"):
        return
    if file.parent.name == "draft":
        method, _, model = file.stem.partition("-")
        assert f"method={method} model={model}" in rest and model in installed().choices("model"), opening
        return
    group = {"": "", "train": "method", "experiment": "name", "sample": "model"}.get(file.parent.name, file.parent.name)
    if file.parent != CONF and group != "launcher":
        assert f"{group}={file.stem}" in rest, opening


@pytest.mark.parametrize(("overrides", "expected"), [([], (20, 256, 1)), (["limit=null", "repeats=3"], (None, 256, 3))])
def test_a_models_sample_is_a_default_that_the_command_line_overrides(overrides: list[str], expected: Any) -> None:
    found = composed("config", "model=smollm2-135m", "method=vanilla", *overrides)
    assert (found["limit"], found["max_new_tokens"], found["repeats"]) == expected
