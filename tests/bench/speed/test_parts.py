"""The measurements of single parts run, and measure what the configuration says."""

from __future__ import annotations

import numpy as np

from bench.config import installed
from bench.speed import lookups, packing, rest
from methods.datastore import SEPARATOR


def test_rest_is_measured_with_the_settings_of_its_configuration(capsys) -> None:
    method = installed().compose("config", ["method=rest"]).values["method"]
    sizes = {"depth": method["continuation"], "occurrences": method["occurrences"], "nodes": method["nodes"]}
    assert sizes == rest.LOOKUP and range(method["min_span"], method["max_span"] + 1) == rest.SPANS
    found = rest.measure(20_000, 1_000, rounds=1)
    assert len(found.lookup_us) == len(found.spans) == 1_000
    assert {0, 2, 16} <= set(found.spans), "contexts match over every span, and not at all"
    assert rest.main(["tokens=5000", "lookups=1000"]) == 0
    assert "us median" in capsys.readouterr().out


def test_the_generated_text_has_documents_and_phrases_that_return() -> None:
    text = rest.text(30_000)
    assert len(text) == 30_000 and text[-1] == SEPARATOR and np.count_nonzero(text == SEPARATOR) == 50
    windows = np.lib.stride_tricks.sliding_window_view(text, 8)
    distinct = len(np.unique(windows, axis=0))
    assert 0.5 < distinct / len(windows) < 0.95


def test_other_arguments_are_refused(capsys) -> None:
    for argument in ("token=5000", "tokens=many", "tokens=5", "tokens"):
        assert rest.main([argument]) == 2
        assert capsys.readouterr().err.startswith(f"{argument}: ")


def test_lookups_are_measured_one_method_a_line(capsys) -> None:
    assert lookups.main(["tokens=60", "steps=20"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pld", "sam", "recycling"]
    assert "80.0 candidates a step" in lines[-1] and all("us median" in line for line in lines)
    assert lookups.main(["steps=5"]) == 2
    assert capsys.readouterr().err == "steps=5: must be a number from 10\n"


def test_packing_is_compared_for_every_number_of_rows(capsys) -> None:
    found = packing.compare("float32", rounds=2)
    assert list(found) == list(packing.ROWS)
    assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in found.values())
    assert packing.main(["rows=5"]) == 2
    assert capsys.readouterr().err.startswith("rows=5: no arguments")
