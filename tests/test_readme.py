"""The README names what is there: every module of the tree exists, and every module is in the tree."""

from __future__ import annotations

import re
from pathlib import Path

from bench.config import installed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section {title}"
    return found[1]


def listed(folder: str, indent: int) -> set[str]:
    """Names at one depth below a folder of the tree."""
    lines = section("What is where").splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{folder}/ "))
    names = set()
    for line in lines[start + 1 :]:
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth < indent:
            break
        if depth == indent:
            names.add(line.split()[0])
    return names


def there(folder: str) -> set[str]:
    names = {p.name + ("/" if p.is_dir() else "") for p in (ROOT / folder).iterdir()}
    return {n for n in names if not n.startswith("_") and n.endswith(("/", ".py"))}


def test_the_tree_is_current() -> None:
    assert listed("methods", 6) == there("methods")
    assert listed("engine", 8) == there("methods/engine")
    assert listed("bench", 6) == there("bench")
    groups = {name for name in section("What is where").split() if (ROOT / "conf" / name).is_dir()}
    assert {f"{p.name}/" for p in (ROOT / "conf").iterdir() if p.is_dir()} <= groups


def test_models_and_commands_that_it_names_exist() -> None:
    text = section("Measure a model")
    models = re.search(r"^Models: (.*?)checkpoint", text, re.DOTALL | re.MULTILINE)
    assert models and set(re.findall(r"`([\w.-]+)`", models[1])) == set(installed().choices("model"))
    for module in re.findall(r"python -m (bench\.\w+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)\b", README)) - {"the"} <= targets


def test_each_kind_of_reader_finds_a_first_command() -> None:
    assert "    make bench METHOD=kangaroo  " in section("Try it without a GPU")
    table1 = section("The paper's Table 1").split("\n\n")
    assert table1[1].strip() == "make experiment NAME=table1 MODEL=vicuna-7b" and len(table1[2].splitlines()) <= 5
    assert "methods/prompt_lookup.py" in section("Add your method")


def test_every_key_of_servers_under_load_is_named_and_no_other() -> None:
    text, values = section("Servers under load"), installed().compose("serve", ["model.path=x"]).values
    named = set(re.findall(r"server\.(\w+)=", text))
    assert named == set(values["server"])
    assert {"name", "concurrency", "block", "warmup"} <= set(re.findall(r"\b(?<!\.)(\w+)=", text))


def test_pictures_that_it_shows_are_there() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
