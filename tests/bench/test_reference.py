"""Published numbers: every file names its source, and the reader gives what the paper prints."""

from __future__ import annotations

import pytest

from bench import published


@pytest.mark.parametrize("path", sorted(published.REFERENCE.glob("*.csv")), ids=lambda path: path.stem)
def test_every_file_names_its_source(path):
    assert path.read_text().startswith("# Source: ")
    assert path.name in (published.REFERENCE / "README.md").read_text()


def test_table1_as_printed():
    kangaroo = published.table1("vicuna-7b", "kangaroo")
    assert kangaroo["math_reasoning"] == (2.14, 1.61)
    assert kangaroo["average"] == (None, 1.50)
    assert published.table1("vicuna-13b", "medusa")["mt_bench"] == (1.82, 1.48)


def test_averages_are_means_of_six_but_for_the_known_oddity():
    for model in ("vicuna-7b", "vicuna-13b"):
        for method in ("kangaroo", "medusa", "rest", "lookahead"):
            rows = published.table1(model, method)
            mean = sum(speedup for name, (_, speedup) in rows.items() if name != "average") / 6
            odd = (model, method) == ("vicuna-7b", "rest")
            assert (abs(mean - rows["average"][1]) <= 0.0051) != odd


def test_the_built_in_model_has_no_published_row():
    assert published.table1("joey", "kangaroo") == {}
    assert published.ctar_math_reasoning("joey", "kangaroo") is None
    assert len(published.exit_layers("joey")) == len(published.thresholds("joey")) == 0


def test_curves():
    curve = published.ctar_math_reasoning("vicuna-7b", "kangaroo")
    assert curve == pytest.approx([0.507, 0.224, 0.102, 0.045, 0.020, 0.006])
    assert 1 + sum(curve) == pytest.approx(1.90, abs=0.01)
    assert list(published.exit_layers("vicuna-13b").exit_layer) == [1, 3, 5, 7]
    assert set(published.thresholds("vicuna-7b").gamma) == {4, 6, 8}
    assert published.table2().set_index("architecture").parameters_millions["kangaroo"] == 67
    assert set(published.spec_bench("vicuna-7b", "medusa").device) == {"3090", "A100"}
