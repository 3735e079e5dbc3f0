"""The page of main.py report in a browser: it opens without a network, sorts, filters, compares, shows a question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.report import report
from tests.commands.browser import CHROMIUM, Browser
from tests.commands.made_runs import CONFIG, Record, answers, make_run
from tests.conftest import ROOMS
from zoo.metrics import score_answer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
Runs = dict[str, list[Record]]
NAMES = ("a", "b", "c")
HOSTILE = "</script><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>%%script%% \\u2028 \ud83d"
FRAMES = ([0, 16, 31, 47], [5, 6], [0, 16, 31, 47])  # of each run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        started = Browser(tmp_path_factory.mktemp("scorer"))
    except (OSError, RuntimeError, TimeoutError) as error:
        pytest.skip(f"Chromium does not start here: {error}")
    yield started
    started.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> tuple[Path, Runs]:
    """The page of three runs about the small rooms, and their answers; the first one of run a is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    source = {"class_path": "datamodules.Rooms", "init_args": {"scenes": list(ROOMS), "root": str(rooms_root)}}
    config: dict[str, Any] = {**CONFIG, "data": {**CONFIG["data"], "init_args": {"num_frames": 4, "source": source}}}
    asked = {name: answers(120, seed=i, right=0.2 + 0.3 * i, scenes=3) for i, name in enumerate(NAMES)}
    for (name, records), frames in zip(asked.items(), FRAMES, strict=True):
        for each in records:
            each |= {"scene": each["scene"].replace("toy/", "rooms/test_0000"), "frames": frames}
        records[0]["prediction"] = HOSTILE if name == "a" else records[0]["prediction"]
        make_run(folder / name, records, config)
    make_run(folder / "untested", None, config)
    report([*(str(folder / name) for name in (*NAMES, "untested")), "--output", str(folder / "report.html")])
    return folder / "report.html", asked


@pytest.fixture
def runs(made: tuple[Path, Runs]) -> Runs:
    return made[1]


@pytest.fixture
def page(browser: Browser, made: tuple[Path, Runs]) -> Iterator[Browser]:
    """The report, freshly opened; it must neither fail nor ask the network for anything."""
    browser.errors.clear()
    browser.open(made[0])
    yield browser
    assert browser.errors == []


def rows(page: Browser, table: str) -> list[list[str]]:
    texts = (
        "[...document.querySelectorAll('{} > tbody > tr:not(.detail)')].map(r => [...r.cells].map(c => c.innerText))"
    )
    found: list[list[str]] = json.loads(page.run(f"JSON.stringify({texts.format(table)})"))
    return found


def choose(page: Browser, control: str, value: str) -> None:
    event = "input" if control in ("by-scene", "by-text") else "change"
    page.run(
        f"{{const c = document.getElementById('{control}'); c.value = {json.dumps(value)}; "
        f"c.dispatchEvent(new Event('{event}'))}}"
    )


def click(page: Browser, script: str) -> None:
    assert page.run(f"{{const found = {script}; found.click(); true}}")


def count(page: Browser) -> str:
    return str(page.run("document.getElementById('count').textContent"))


def test_the_control_a_page_that_fails_or_asks_the_network_is_noticed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>nothing.there()</script><img src='http://127.0.0.1:9/picture.png'>")
    browser.errors.clear()
    browser.open(tmp_path / "bad.html")
    assert any("nothing is not defined" in each for each in browser.errors)
    assert any("asked the network for http://127.0.0.1:9" in each for each in browser.errors)


def test_tables_sort_by_a_click_both_ways(page: Browser) -> None:
    heading = "[...document.querySelectorAll('#runs table')[0].querySelectorAll('thead tr:last-child th')]"
    before = [row[0] for row in rows(page, "#runs .wide:first-of-type table")]
    assert before == [*NAMES]
    scores = {row[0]: row[-1] for row in rows(page, "#runs .wide:first-of-type table")}
    best_first = sorted(NAMES, key=lambda name: -float(scores[name]))
    assert best_first != list(NAMES)
    click(page, f"{heading}.at(-1).querySelector('button')")
    assert [row[0] for row in rows(page, "#runs .wide:first-of-type table")] == best_first
    assert page.run(f"{heading}.at(-1).getAttribute('aria-sort')") == "descending"
    click(page, f"{heading}.at(-1).querySelector('button')")
    assert [row[0] for row in rows(page, "#runs .wide:first-of-type table")] == best_first[::-1]
    assert page.run(f"{heading}.at(-1).getAttribute('aria-sort')") == "ascending"


def test_questions_are_filtered_sorted_and_turned_by_pages(page: Browser, runs: Runs) -> None:
    assert count(page) == "1 to 50 of 120" and len(rows(page, "#list")) == 50
    click(page, "[...document.querySelectorAll('#questions button')].find(b => b.textContent === 'On')")
    assert count(page) == "51 to 100 of 120"
    choose(page, "by-type", "route_planning")
    planned = [each["id"] for each in runs["a"] if each["question_type"] == "route_planning"]
    assert [row[0] for row in rows(page, "#list")] == planned and count(page) == "1 to 12 of 12 (120 in all)"
    choose(page, "by-run", "1")
    choose(page, "by-score", "right")
    right = [b["id"] for b in runs["b"] if b["id"] in planned and b["prediction"] == b["ground_truth"]]
    assert [row[0] for row in rows(page, "#list")] == right and 0 < len(right) < len(planned)
    choose(page, "by-score", "any")
    choose(page, "by-text", "QUESTION Q00008")
    assert [row[0] for row in rows(page, "#list")] == ["q00008"]
    choose(page, "by-text", "no such text")
    assert rows(page, "#list") == [] and count(page) == "none (120 in all)"
    choose(page, "by-text", "")
    choose(page, "by-type", "")
    choose(page, "by-scene", "test_00002")
    assert {row[1] for row in rows(page, "#list")} == {"rooms/test_00002"}
    click(page, "[...document.querySelectorAll('#list thead button')][0]")
    click(page, "[...document.querySelectorAll('#list thead button')][0]")
    ids = [each["id"] for each in runs["a"] if each["scene"] == "rooms/test_00002"]
    assert [row[0] for row in rows(page, "#list")] == sorted(ids, reverse=True)[:50]


def test_the_questions_that_runs_answer_differently_are_found(page: Browser, runs: Runs) -> None:
    choose(page, "by-type", "object_rel_distance")  # scored by right or wrong
    choose(page, "by-score", "runs differ")
    of_type = [[runs[name][i] for name in NAMES] for i in range(120)]
    differ = [
        three[0]["id"]
        for three in of_type
        if three[0]["question_type"] == "object_rel_distance"
        and len({each["prediction"] == each["ground_truth"] for each in three}) == 2
    ]
    assert [row[0] for row in rows(page, "#list")] == differ and differ


def test_a_question_opens_with_its_prompt_answers_and_camera_path(page: Browser, runs: Runs) -> None:
    click(page, "[...document.querySelectorAll('#list .open')][3]")
    shown = page.run("document.querySelector('tr.detail').innerText")
    assert "<video>question q00003?" in shown
    answered = [row[:4] for row in rows(page, "tr.detail table")]
    assert [row[:3] for row in answered] == [[n, runs[n][3]["prediction"], runs[n][3]["ground_truth"]] for n in NAMES]
    scores = [
        score_answer(*(runs[n][3][key] for key in ("prediction", "ground_truth", "question_type"))) for n in NAMES
    ]
    assert [float(row[3]) / 100 for row in answered] == pytest.approx(scores, abs=1e-3) and len(set(scores)) > 1
    marks = page.run(
        "JSON.stringify([...document.querySelectorAll('svg.path')].map(s => "
        "[...s.querySelectorAll('circle + text')].map(t => Number(t.textContent))))"
    )
    assert json.loads(marks) == [FRAMES[0], FRAMES[1]]  # a and c used the same
    points = page.run("document.querySelector('svg.path polyline').getAttribute('points').split(' ').length")
    assert points == 48  # a room has 48 frames
    click(page, "[...document.querySelectorAll('#list .open')][3]")
    assert page.run("document.querySelector('tr.detail')") is None


def test_any_pair_of_runs_is_compared_and_turned_round(page: Browser) -> None:
    choose_pair = (
        "{{const [a, b] = document.querySelectorAll('#compare select'); a.value = {}; b.value = {}; "
        "b.dispatchEvent(new Event('change'))}}"
    )
    page.run(choose_pair.format(0, 2))
    forth = {row[0]: row[1:4] for row in rows(page, "#differences table")}
    page.run(choose_pair.format(2, 0))
    back = {row[0]: row[1:4] for row in rows(page, "#differences table")}
    assert len(forth) == 14 and forth.keys() == back.keys()
    assert all(float(forth[measure][0]) == -float(back[measure][0]) for measure in forth)
    assert float(forth["All micro"][0]) > 0
    low, high = map(float, forth["All micro"][1].strip("[]").split(", "))
    assert back["All micro"][1] == f"[{-high:+.1f}, {-low:+.1f}]"
    page.run(choose_pair.format(1, 1))
    assert page.run("document.getElementById('differences').textContent") == "Choose two runs."


def test_each_question_type_has_a_chart_with_a_bar_a_run(page: Browser) -> None:
    script = (
        "JSON.stringify([...document.querySelectorAll('#bars figure')].map(f => [f.querySelector('figcaption')"
        ".textContent, ...[...f.querySelectorAll('.fill')].map(b => b.offsetWidth / b.parentNode.offsetWidth)]))"
    )
    charts = {name: widths for name, *widths in json.loads(page.run(script))}
    table = {row[0]: row[1:] for row in rows(page, "#runs .wide:first-of-type table")}
    for column, (name, widths) in enumerate(charts.items()):
        expected = [float(table[run][column]) / 100 for run in NAMES]
        assert widths == pytest.approx(expected, abs=0.01), name
    assert len(charts) == 9


def test_an_answer_is_never_markup(page: Browser) -> None:
    click(page, "document.querySelector('#list .open')")
    shown = page.run("document.querySelector('tr.detail').innerText")
    assert HOSTILE[:60] in shown
    assert page.run("window.taken") is None and page.run("document.images.length") == 0
