"""The questions on a report's page: pictures of their scenes, and menus that filter and sort them."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image

from commands.report import report
from evaluation.drawings import save_picture
from tests.commands.made_runs import CONFIG, answers, make_run
from tests.conftest import ROOMS

pytestmark = pytest.mark.usefixtures("undrawn")
NUM_FRAMES = 4, 6
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# as a user would: chooses in each menu, opens the first question, and writes what is there into the page's title
DRIVER = """
const found = {}, list = document.querySelector(".questions"), menus = document.querySelectorAll("section select");
const choose = (place, value) => {
  menus[place].value = value;
  menus[place].dispatchEvent(new Event("change", {bubbles: true}));
  return [...list.children].map(row => row.querySelector("span").textContent);
};
found.all = choose(0, "");
found.type = choose(0, "object_counting");
choose(0, "");
found.lost = choose(1, "lost");
choose(1, "");
found.gap = choose(2, "gap");
found.loss = choose(2, "loss");
found.count = document.querySelector("output").value;
list.firstChild.open = true;
const pictures = [...list.firstChild.querySelectorAll("img")];
pictures.forEach(each => { each.loading = "eager"; });
const finish = () => {
  found.widths = pictures.map(each => each.naturalWidth);
  document.title = JSON.stringify(found);
};
if (pictures[0].decode) Promise.allSettled(pictures.map(each => each.decode())).then(finish);
finish();
"""


def config_on(root: Path, **options: Any) -> Any:
    """The config of a test of small rooms."""
    config: Any = copy.deepcopy(CONFIG)
    source = {"class_path": "datamodules.Rooms", "init_args": {"scenes": [*ROOMS], "root": str(root), "workers": 1}}
    config["data"]["init_args"] |= {"source": source, **options}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> list[Path]:
    """Two runs of equal questions about three rooms, of which they showed other frames."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    for seed, num_frames in enumerate(NUM_FRAMES):
        records = answers(90, seed=seed, right=0.4 + seed / 4, scenes=3)
        for record in records:
            number = record["scene"].removeprefix("toy/")
            record |= {"scene": f"rooms/test_0000{number}", "frames": [*range(0, 2 * num_frames, 2)]}
        config = config_on(rooms_root, num_frames=num_frames)
        made.append(make_run(folder / f"frames{num_frames}", records, config))
    return made


def write_page(runs: list[Path], folder: Path) -> tuple[str, list[Path]]:
    report([*map(str, runs), "--output", str(folder / "page.html")])
    return (folder / "page.html").read_text(), sorted((folder / "page_pictures").glob("*"))


@pytest.mark.slow
def test_a_question_shows_the_frames_of_each_run_and_the_cameras(runs: list[Path], tmp_path: Path, capsys) -> None:
    text, files = write_page(runs, tmp_path)
    assert "left out" not in capsys.readouterr().err
    addresses = re.findall('<img loading="lazy" src="([^"]+)"', text)
    assert len(addresses) == 90 * 2 * 2 and {tmp_path / each for each in addresses} == {*files}
    assert [each.suffix for each in files].count(".jpg") == [each.suffix for each in files].count(".png") == 3 * 2
    sizes = {Image.open(each).size for each in files if each.suffix == ".jpg"}
    assert len(sizes) == 2  # sheets of 4 and of 6 frames
    assert "frames of frames4" in text and "frames of frames6" in text
    times = [each.stat().st_mtime_ns for each in files]
    write_page(runs, tmp_path)
    assert [each.stat().st_mtime_ns for each in files] == times  # pictures are drawn once


@pytest.mark.slow
def test_pictures_that_cannot_be_made_are_counted_and_end_no_report(
    runs: list[Path], rooms_root: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, changed = tmp_path / "gone", tmp_path / "changed"
    for copied, config in (
        (gone, config_on(tmp_path / "nowhere")),
        (changed, config_on(rooms_root, perturbation={"class_path": "datamodules.perturbations.ReversedFrames"})),
    ):
        shutil.copytree(runs[0], copied)
        (copied / "config.yaml").write_text(json.dumps(config))
    text, files = write_page([gone], tmp_path)
    said = capsys.readouterr().err
    assert re.search(r"^pictures of 3 of 3 scenes are left out: \S.*nowhere", said, re.MULTILINE) and not files
    assert unescape(re.findall("<li>(pictures.*?)</li>", text)[0]) in said
    assert write_page([changed], tmp_path)[1] == []  # it showed other frames than those of these numbers
    monkeypatch.setattr("commands.reports.pictures.LIMIT", 60_000)
    files = write_page(runs, tmp_path)[1]
    assert "the pictures of a page have at most" in capsys.readouterr().err and 2 <= len(files) < 12


def test_an_explained_answer_has_its_picture(
    runs: list[Path], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an answer that was given, other frames, or another program's picture; and no file stops a report."""
    explained, folder = tmp_path / "explained", tmp_path / "explained/explanations"
    shutil.copytree(runs[0], explained)
    folder.mkdir()
    lines = (explained / "predictions.jsonl").read_text().split("\n")
    own, given, moved, theirs = map(json.loads, lines[:4])
    made = {"own": own, "given": given, "moved": moved | {"frames": [1]}, "theirs": theirs}
    for name, record in made.items():
        about = {"id": record["id"], "answer": record["prediction"], "is_given": name == "given"}
        views = [{"frames": record["frames"]}]
        (folder / f"{name}.json").write_text(json.dumps({**about, "views": views}))
        save_picture(Image.new("RGB", (8, 8)), folder / f"{name}.png")
    Image.new("RGB", (9, 9)).save(folder / "theirs.png")
    (folder / "deep.json").write_text("[" * 200_000)
    os.mkfifo(folder / "pipe.json")
    text, files = write_page([explained], tmp_path)
    rows = [row for row in text.split("<details ") if "views that this answer depends on" in row]
    assert len(rows) == 1 and f"<span>{own['id']}</span>" in rows[0]
    assert [Image.open(file).size for file in files if Image.open(file).width < 10] == [(8, 8)]
    monkeypatch.setattr("commands.reports.pictures.LIMIT", 10)
    text, _ = write_page([explained], tmp_path)
    said = "1 explanations are left out: the pictures of a page have at most"
    assert "views that this answer depends on" not in text and said in capsys.readouterr().err


def test_files_of_others_are_neither_shown_nor_replaced(runs: list[Path], tmp_path: Path, capsys) -> None:
    """Of three pictures one is now a text, and one a link to nowhere. Names of pages may hold anything."""
    name = "a#b?c%41.html"
    report([str(runs[0]), "--output", str(tmp_path / name)])
    pictures = sorted((tmp_path / "a#b?c%41_pictures").glob("*.jpg"))
    assert 'src="a%23b%3Fc%2541_pictures/' in (tmp_path / name).read_text() and len(pictures) == 3
    capsys.readouterr()
    pictures[0].write_text("mine")
    pictures[1].unlink()
    pictures[1].symlink_to(tmp_path / "nowhere")
    report([str(runs[0]), "--output", str(tmp_path / name)])
    assert re.search("pictures of 2 of 3 scenes are left out: .* is not a picture of a report", capsys.readouterr().err)
    assert pictures[0].read_text() == "mine" and pictures[1].is_symlink() and not (tmp_path / "nowhere").exists()
    shown = {*re.findall(r'src="[^"/]+/([^"]+[.]jpg)"', (tmp_path / name).read_text())}
    assert shown == {pictures[2].name}
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "linked_pictures").symlink_to(other)
    report([str(runs[0]), "--output", str(tmp_path / "linked.html")])
    assert "is a link, which is not followed" in capsys.readouterr().err and not [*other.iterdir()]


@pytest.fixture
def driven(runs: list[Path], tmp_path: Path) -> Path:
    """A page with the driver as a second script that its policy permits."""
    text, _ = write_page(runs, tmp_path)
    allowed = b64encode(sha256(DRIVER.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{allowed}' ").replace(
        "</body>", f"<script>{DRIVER}</script></body>"
    )
    (tmp_path / "driven.html").write_text(text)
    return tmp_path / "driven.html"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_filters_sorts_and_shows_pictures(driven: Path, runs: list[Path]) -> None:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    made = subprocess.run([*command, driven.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(unescape(re.findall("<title>(.*?)</title>", made.stdout, re.DOTALL)[0]))
    assert found.pop("widths") == [Image.open(driven.parent / each).width for each in first_pictures(driven, found)]
    check_menus(found, runs)


def first_pictures(page: Path, found: dict[str, Any]) -> list[str]:
    """The addresses of the pictures of the question that stands first in the last order."""
    (row,) = re.findall(rf"<details[^\n]*<span>{found['loss'][0]}</span>[^\n]*", page.read_text())
    return re.findall('<img loading="lazy" src="([^"]+)"', row)


def check_menus(found: dict[str, Any], runs: list[Path]) -> None:
    """Compare what the menus show with the answers in the runs' files."""
    records = [
        [json.loads(line) for line in (run / "predictions.jsonl").read_text().split("\n") if line] for run in runs
    ]
    scores = {first["id"]: (first["score"], second["score"]) for first, second in zip(*records, strict=True)}
    ids = [*scores]
    assert found["all"] == ids and found["count"] == "90 of 90"
    assert found["type"] == [each["id"] for each in records[0] if each["question_type"] == "object_counting"]
    assert found["lost"] == [id for id in ids if max(scores[id]) < 0.5]
    assert found["gap"] == sorted(ids, key=lambda id: -round(abs(scores[id][0] - scores[id][1]), 4))
    assert found["loss"] == sorted(ids, key=lambda id: round(fmean(scores[id]), 4))
    assert found["gap"] != ids != found["loss"] and 0 < len(found["lost"]) < 90
