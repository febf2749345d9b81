"""The page in headless Chromium: controls, charts, widths, escaping; and its numbers without a browser."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.predict.paper import by_row
from bench.report.collect import collect
from bench.report.details import FIGURES
from bench.report.page import write_page
from bench.report.tables import write_tables
from bench.words import show, show_interval
from tests.bench.report.browser import chromium, view
from tests.bench.report.simulate import MACHINE, Plan, Truth, write_run, write_tokenizer

HOSTILE = (
    "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\"> & <b>b</b>"
)
CHECKS = (Path(__file__).parent / "checks.js").read_text()
METHODS = {"kangaroo": Truth(0.65, 0.25), "medusa": Truth(0.5, 0.2, 4), "lookahead": Truth(0.3, 0.43, 4, noise=0.4)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with all that a page can show: two machines, hostile texts, failures, differences."""
    folder = tmp_path_factory.mktemp("page")
    questions = [{"question_id": n, "category": "qa", "turns": [f"prompt {n} {HOSTILE}"]} for n in range(1, 37)]
    (folder / "question.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    tokenizer = str(write_tokenizer(folder / "tokenizer"))
    config = {
        "model": {"name": "joey", "path": tokenizer, "dtype": "float32"},
        "data": {"path": str(folder / "question.jsonl")},
        "note": HOSTILE,
    }
    for method, truth in METHODS.items():
        extra = {"tied_turns": 2} if method == "medusa" else {}
        extra |= {"failed_questions": 1, "text": HOSTILE} if method == "lookahead" else {}
        write_run(folder, Plan(method=method, truth=truth, per_category=6, config=config, **extra))
    plan = Plan(method="rest", truth=Truth(0.45, 0.35), per_category=6, mismatched_turns=1, config=config, text=HOSTILE)
    failing = write_run(folder, plan)
    failure = {"question_id": 99, "category": "qa", "repeat": 0, "turn": 0, "status": "failed", "error": HOSTILE}
    (failing / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    gpu = MACHINE | {"gpu": "NVIDIA H100", "driver": "570"}
    vicuna = Plan(model="vicuna-7b", demonstration=False, machine=gpu, dtype="float16", per_category=3)
    for eta in (0.2, 0.6):
        write_run(folder, Plan(**(vars(vicuna) | {"settings": {"exit_layer": 2, "gamma": 6, "eta": eta}})))
    collection, out = collect(folder), folder / "report"
    out.mkdir()
    write_page(collection, out)
    write_tables(collection, out)
    return folder


@pytest.fixture(scope="module")
def page(results) -> Path:
    return results / "report" / "index.html"


@pytest.fixture(scope="module")
def window():
    with chromium() as found:
        yield found


@pytest.fixture(autouse=True)
def quiet(request):
    """No test may leave an error or warning in the console, or ask anything of a network."""
    yield
    if "window" not in request.fixturenames:
        return
    driver = request.getfixturevalue("window")
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert not [url for url in urls if not url.startswith(("file:", "data:"))]


def check(window, name: str):
    """What a function of checks.js finds on the page."""
    return window.execute_script(f"{CHECKS} return {name}();")


def cells(window, column: int) -> list[str]:
    rows = "[...document.querySelector('table[data-board]').tBodies[0].rows]"
    return window.execute_script(f"return {rows}.map(row => row.cells[{column}].dataset.value)")


def test_it_opens_as_one_small_file(page, window):
    view(window, page, 1440)
    assert window.title == "Speculative decoding, measured"
    assert page.stat().st_size < 5_000_000
    outside = window.execute_script(
        "return document.querySelectorAll('[src], link[href]:not([href^=\"data:\"])').length"
    )
    assert outside == 0


def test_every_heading_sorts_both_ways_with_empty_cells_last(page, window):
    view(window, page, 1440)
    headings = window.find_elements("css selector", "table[data-board] thead th button")[:12]
    for column, heading in list(enumerate(headings))[1:]:
        orders = []
        for _ in range(2):
            heading.click()
            values = [value for value in cells(window, column) if value != ""]
            orders.append([float(value) for value in values])
        assert sorted(orders[0]) == sorted(orders[1])
        assert {tuple(orders[0]), tuple(orders[1])} == {
            tuple(sorted(orders[0])),
            tuple(sorted(orders[0], reverse=True)),
        }
    headings[0].click()
    names = cells(window, 0)
    assert names == sorted(names, reverse=True)


def test_the_subtask_control_changes_charts_and_figures(page, window):
    view(window, page, 1440)
    from selenium.webdriver.support.ui import Select

    select = Select(window.find_element("css selector", "#g0-subtask"))
    for option in [option.get_attribute("value") for option in select.options]:
        select.select_by_value(option)
        parts = "[...document.querySelectorAll('#g0 div[data-subtask]')].filter(part => !part.hidden)"
        shown = window.execute_script(f"return {parts}.map(part => part.dataset.subtask)")
        assert shown == [option] * 6  # five charts and the table of every figure


def test_all_charts_are_drawn_with_a_mark_for_every_method(page, window):
    view(window, page, 1440)
    counts = check(window, "charts")
    assert [group["methods"] for group in counts] == [4, 2]
    for group in counts:
        methods, charts = group["methods"], group["charts"]
        assert set(charts) == {"ctar", "speedup", "split", "cost", "predicted"}
        assert all(chart["width"] > 300 and chart["height"] > 80 for chart in charts.values())
        assert (charts["ctar"]["curves"], charts["ctar"]["marks"]) == (methods, 6 * methods)
        assert charts["speedup"]["bars"] == methods and charts["split"]["bars"] == 3 * methods
        assert charts["cost"]["marks"] == methods


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_no_text_is_cut(page, window, width, dark):
    view(window, page, width, dark=dark)
    for group in window.find_elements("css selector", "select[data-charts]"):
        for option in group.find_elements("css selector", "option"):
            option.click()
            found = check(window, "cutText")
            assert found["cut"] == [] and found["overflow"] <= 0
    if width == 1440:
        assert found["board"] <= 0  # the leaderboard fits a desktop's width


@pytest.mark.parametrize("width", [1200, 1440])
def test_the_leaderboard_of_six_subtasks_fits_and_breaks_no_word(tmp_path, window, width):
    for tokens in (128, 1024):
        settings = {"max_new_tokens": tokens, "exit_layer": 2}
        write_run(tmp_path, Plan(per_category=2, tokens=20, settings=settings, truth=Truth(noise=tokens / 1000)))
    view(window, write_page(collect(tmp_path), tmp_path), width)
    assert check(window, "cutText")["board"] <= 0
    assert "max_new_tokens=1024" in window.find_element("css selector", ".board").text
    assert check(window, "brokenWords") == []


@pytest.mark.parametrize("width", [390, 1440])
def test_twelve_methods_with_long_names_are_not_cut(tmp_path, window, width):
    for number in range(12):
        write_run(tmp_path, Plan(method=f"a_method_with_a_name_that_goes_on_and_on_and_on_and_on_and_on_{number}",
                                 categories=("qa", "rag"), per_category=2, tokens=20))  # fmt: skip
    path = write_page(collect(tmp_path), tmp_path)
    view(window, path, width)
    found = check(window, "cutText")
    assert found["cut"] == [] and found["overflow"] <= 0
    names = {element.text for element in window.find_elements("css selector", "[data-chart=speedup] svg text.name")}
    assert len(names - {""}) == 12  # shortened, they still differ


def test_dark_and_light_are_readable(page, window):
    """Contrast of text on its background: at least 4.5 to 1 (WCAG AA), for every pair of colours in use."""
    backgrounds = set()
    for dark in (False, True):
        view(window, page, 1440, dark=dark)
        for row in window.find_elements("css selector", ".list tbody tr.row")[:3]:
            row.click()
        ratios = check(window, "contrasts")
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
        backgrounds.add(window.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_an_answer_shows_its_steps_coloured_by_length(page, results, window):
    view(window, page, 1440)
    box = window.find_element("css selector", ".questions")
    row = box.find_element("css selector", "tbody tr.row")
    row.click()
    question = int(row.find_element("css selector", "button").text)
    (group,) = [group for group in collect(results).groups if group.model == "joey"]
    (entry,) = [entry for entry in group.entries if entry.label == "kangaroo"]
    turns = entry.run.answers
    turn = turns[(turns.question_id == question) & (turns.repeat == 0)].iloc[0]
    spans = box.find_elements("css selector", "tr.answer .text:nth-of-type(2) span")
    assert [int(s.get_attribute("class")[1:]) for s in spans] == [min(int(n), 7) for n in turn.lengths]
    assert len(spans[0].text.split()) == turn.lengths[0]
    assert window.find_element("css selector", "tr.answer .text").text == turn.text
    row.click()
    assert not box.find_elements("css selector", "tr.answer")


def test_questions_filter_sort_and_show_more(page, window):
    from selenium.webdriver.support.ui import Select

    view(window, page, 390)
    box = window.find_element("css selector", ".questions")
    count = lambda: len(box.find_elements("css selector", "tbody tr.row"))  # noqa: E731
    assert count() == 20
    box.find_element("css selector", ".more").click()
    assert count() == 36
    Select(box.find_element("css selector", "[data-pick=subtask]")).select_by_visible_text("Math")
    assert count() == 6
    box.find_elements("css selector", "thead button")[1].click()
    speedups = [float(td.text.rstrip("×")) for td in box.find_elements("css selector", "tbody td:nth-child(2)")]
    assert speedups == sorted(speedups, reverse=True)


def test_hostile_texts_are_shown_as_text(page, window):
    from selenium.webdriver.support.ui import Select

    view(window, page, 1440)
    box = window.find_element("css selector", ".questions")
    for method in ("lookahead", "rest"):
        Select(box.find_element("css selector", "[data-pick=method]")).select_by_visible_text(method)
        box.find_element("css selector", "tbody tr.row").click()
        assert HOSTILE in box.find_element("css selector", ".text").text
        assert HOSTILE in box.find_element("css selector", ".prompt").text
    for details in window.find_elements("css selector", "details"):
        window.execute_script("arguments[0].open = true", details)
    shown = window.find_element("css selector", "body").text
    assert shown.count(HOSTILE) >= 4  # answer, prompt, error of a failed turn, configuration
    assert window.title == "Speculative decoding, measured"
    assert window.execute_script("return document.querySelectorAll('img').length") == 0
    # the page's own script, and one block of data for each of its two groups
    assert window.execute_script("return document.scripts.length") == 3


def test_differences_from_the_baseline_are_shown_as_text(page, window):
    view(window, page, 1440)
    shown = window.find_element("css selector", ".divergences[open]").text
    assert "mismatch" in shown and "margin 0.7" in shown
    ours, theirs = window.find_elements("css selector", ".divergences[open] mark")[:2]
    assert ours.text != theirs.text


def test_it_prints_what_was_chosen_and_cuts_no_table_of_differences(page, window):
    view(window, page, 700)
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    bare = "filter(e => e.offsetHeight && getComputedStyle(e).appearance == 'none')"
    assert window.execute_script(f"return [...document.querySelectorAll('select')].{bare}.length") == len(
        window.find_elements("css selector", "select")
    )
    right = "Math.max(...[...document.querySelectorAll('.differs')].map(e => e.getBoundingClientRect().right))"
    assert window.execute_script(f"return {right} - innerWidth") <= 0
    printed = window.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(printed) > 20_000


class Tags(HTMLParser):
    """Attributes of td elements, and rows of the tables of every figure by (group, subtask)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.figures: dict[tuple[str, str], list[list[str]]] = {}
        self.group, self.subtask, self.inside, self.text = "", "", False, False

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "section":
            self.group = found["id"]
        if tag == "td" and "data-method" in found:
            self.cells.append(found | {"group": self.group})
        if tag == "div" and "data-subtask" in found:
            self.subtask = found["data-subtask"]
        if tag == "table":
            self.inside = found.get("class") == "figures"
        if tag == "tr" and self.inside:
            self.figures.setdefault((self.group, self.subtask), []).append([])
        self.text = tag in ("td", "th") and self.inside
        if self.text:
            self.figures[self.group, self.subtask][-1].append("")

    def handle_data(self, data):
        if self.text:
            self.figures[self.group, self.subtask][-1][-1] += data

    def handle_endtag(self, tag):
        self.text = self.text and tag not in ("td", "th")
        self.inside = self.inside and tag != "table"


def test_page_and_csv_hold_the_numbers_of_metrics(results, page):
    tags = Tags()
    tags.feed(page.read_text())
    board = {(f"g{n}", e.label): e for n, group in enumerate(collect(results).groups) for e in group.entries}
    with (results / "report" / "leaderboard.csv").open() as file:
        csv_rows = {(r["model"], r["method"], r["subtask"]): r for r in csv.DictReader(file)}
    assert len(tags.cells) == len(csv_rows) == 6 * 7
    for cell in tags.cells:
        entry = board[cell["group"], cell["data-method"]]
        row = entry.row(cell["data-subtask"])
        in_csv = csv_rows[entry.run.model, entry.label, cell["data-subtask"]]
        for name, attribute in (("speedup", "data-value"), ("cr", "data-cr")):
            assert float(cell[attribute]) == row[name] == float(in_csv[name])
        for name in ("speedup_low", "speedup_pooled", "speedup_paired", "step_cost", "spread", "tokens_per_s"):
            assert float(in_csv[name]) == row[name]


def test_the_papers_table_1_is_predicted_beneath_the_charts(page):
    text = page.read_text()
    section = text[text.index('<section id="paper">') :]
    assert 'href="#paper"' in text and "<b>Prediction, not measured.</b>" in section
    for row in by_row():
        assert f'<tr><th scope="row">{row["model"]}</th><td>{row["method"]}</td>' in section
        for cell in row["cells"].values():
            share = f"{100 * cell.printed / cell.predicted:.0f} %"
            assert f"<td>{show(cell.predicted)}×<small>printed {show(cell.printed)}× ({share})</small></td>" in section


def test_every_figure_is_the_one_of_metrics(results, page):
    tags = Tags()
    tags.feed(page.read_text())
    for number, group in enumerate(collect(results).groups):
        for subtask in ["overall", *group.subtasks]:
            header, *body = tags.figures[f"g{number}", subtask]
            assert header[1:] == [entry.label for entry in group.entries]
            shown = {line[0]: line[1:] for line in body}
            rows = [entry.row(subtask) for entry in group.entries]
            assert shown["CR, tokens per step"] == [show(row["cr"], 3) for row in rows]
            assert shown["CTAR(2)"] == [show(row["ctar"][1], 3) for row in rows]
            paired = next(name for name in shown if name.startswith("Speedup paired"))
            assert shown[paired] == [show_interval(row, "speedup_paired", 3) for row in rows]
            for name, text in FIGURES:
                assert shown.get(name, [""] * len(rows)) == [text(row) for row in rows]


def test_per_question_numbers_are_those_of_metrics(results, page):
    from bench.metrics import question_table

    data = json.loads(re.search(r'id="g0-data">(.*?)</script>', page.read_text()).group(1))
    group = collect(results).groups[0]
    for entry, rows in zip(group.entries, data["rows"], strict=True):
        table = question_table(entry.run)
        assert len(rows) == len(table)
        for place, speedup, rate, cr, tokens, verdict, _ in rows:
            expected = table.loc[data["questions"][place][0]]
            assert (speedup, rate, cr) == tuple(round(float(expected[k]), 4) for k in ("speedup", "tokens_per_s", "cr"))
            assert (tokens, verdict) == (int(expected.tokens), expected.verdict)
