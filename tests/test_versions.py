"""setup.cfg's bounds, constraints.txt's pins and what is installed agree; `make oldest` has the bounds themselves."""

from __future__ import annotations

import configparser
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
STUBS = "types-"  # what mypy reads of others' types: any will do
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(extras: set[str] | None = None) -> list[Requirement]:
    """What is required, and what each of the extras (None: all) adds."""
    read = settings()
    texts = [read["options"]["install_requires"]]
    texts += [text for name, text in read["options.extras_require"].items() if extras is None or name in extras]
    return [Requirement(line) for text in texts for line in text.split("\n") if line.strip()]


def installed_by_make() -> list[Requirement]:
    """What `make setup` and `make oldest` install by name."""
    extras = re.search(r"^EXTRAS := \.\[(.*)\]$", MAKEFILE, re.MULTILINE)
    assert extras
    return [one for one in requirements(set(extras[1].split(","))) if not one.name.startswith(STUBS)]


def bound(requirement: Requirement) -> Version:
    (lowest,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return Version(lowest)


def test_everything_has_a_lower_bound() -> None:
    assert {one.name for one in requirements() if ">=" not in str(one)} == {
        "types-tqdm",
        "types-PyYAML",
        "types-psutil",
    }
    assert settings()["mypy"]["python_version"] == settings()["options"]["python_requires"].removeprefix(">=")


def test_the_pinned_versions_are_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    for one in installed_by_make():
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), one


def test_what_is_installed_is_within_the_bounds() -> None:
    for one in requirements({"dev"}):
        try:
            assert one.specifier.contains(version(one.name), prereleases=True), one
        except PackageNotFoundError:
            continue  # an extra's, or somebody's own environment


def test_the_builds_own_bound_is_the_one_tested() -> None:
    (build,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert build in map(str, requirements({"dev"}))


def test_the_oldest_environment_has_the_bounds_themselves() -> None:
    """A bound lower than what comes of it (another package asks for more) would promise what nobody has tried."""
    if Path(sys.prefix).name != re.findall(r"^OLDEST := (\S+)$", MAKEFILE, re.MULTILINE)[0]:
        pytest.skip("this is not the environment of make oldest")
    bounds: dict[str, Version] = {}
    for one in installed_by_make():  # an extra may ask for more
        bounds[one.name] = max(bound(one), bounds.get(one.name, bound(one)))
    del bounds["torch"]
    assert {name: Version(version(name)) for name in bounds} == bounds
