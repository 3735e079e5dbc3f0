"""`explain`: files, table and picture of a run's answers; it leaves other people's files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from commands.explaining import draw, explain_question, load_explained
from tests.cli import Run


@pytest.mark.slow
def test_the_command(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "prope.yaml")
    (folder,) = (tmp_path / "runs").iterdir()
    loaded = load_explained(folder)
    first, second = (question.id for scene in loaded.dataset.scenes[:2] for question in scene.questions[:1])
    printed = run("explain", str(folder), "--question", first, "--question", second, sized=False)
    assert printed.count("without_camera") == 2
    # 1. The files have the numbers of Python, for each view.
    files = sorted((folder / "explanations").iterdir())
    assert [file.suffix for file in files].count(".json") == [file.suffix for file in files].count(".png") == 2
    written = {found["id"]: found for found in (json.loads(f.read_text()) for f in files if f.suffix == ".json")}
    explained = explain_question(loaded, first)
    own, stored = explained.explanation, written[first]
    assert stored["log_prob"] == pytest.approx(own.log_prob, abs=1e-5) and stored["answer"] == explained.answer
    assert [view["hidden"] for view in stored["views"]] == pytest.approx(own.hidden.tolist(), abs=1e-5)
    assert len(stored["views"]) == len(own.hidden) >= 2 and max(map(abs, own.hidden.tolist())) > 1e-4
    assert own.without_camera is not None and own.attention is not None
    assert [len(view["attention"]) for view in stored["views"]] == [len(own.layers)] * len(own.hidden)
    assert [view["frames"] for view in stored["views"]] == [[*frames] for frames in explained.frame_indices]
    # 2. Another answer is explained when asked.
    other = explain_question(loaded, first, "55 $x_$")
    assert other.explanation.log_prob != own.log_prob and other.is_given and draw(other).width > 1000
    run("explain", str(folder), "--question", first, "--answer", "55", sized=False)
    assert len([*(folder / "explanations").iterdir()]) == 6 and json.loads(files[0].read_text()) == stored
    # 3. The picture has a line of views per eight, and draws an answer that looks like a formula as it is.
    picture = draw(explained)
    assert picture.size == Image.open(next(f for f in files if f.suffix == ".png")).size
    # 4. Bad input is one line, and nobody's file is replaced.
    theirs = tmp_path / "mine"
    theirs.mkdir()
    (theirs / f"{first}.json").write_text("mine")
    (tmp_path / "link").symlink_to(theirs)
    for words, error in (
        (["--question", "no such"], "--question no such: none of the"),
        (["--question", first, "--output", str(theirs)], "is there already, and not what this command writes"),
        (["--question", first, "--output", str(tmp_path / "link")], "is a link, which is not followed"),
        ([], "required: question"),
    ):
        with pytest.raises(SystemExit, match=error) as end:
            run("explain", str(folder), *words, sized=False)
        assert "\n" not in str(end.value.code)
    assert (theirs / f"{first}.json").read_text() == "mine" and len([*theirs.iterdir()]) == 1
