"""speculative-bench COMMAND."""

from __future__ import annotations

import sys

import pytest

from bench.cli import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["speculative-bench", *arguments])
    assert main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(COMMANDS)


def test_an_unknown_command_is_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speculative-bench", "reprot"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("reprot: unknown command; did you mean report? valid: distill, ")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of commands that other tests imported
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gets_its_arguments(capsys, monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["speculative-bench", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and capsys.readouterr().out.lower().startswith("usage: python -m bench." + command)
