"""The picture of the README: a room with a panel, its cameras, its frames, a question, and answers of trained models.

    python main.py study studies/panels.yaml --seeds 0 --output runs/panels
    python -m docs.room "images alone=runs/panels/runs/images-alone-0" PRoPE=runs/panels/runs/PRoPE-0 ...

Writes docs/room.png. The predictions.jsonl of the runs hold the answers; those of a further test are in its subfolder.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from callbacks.drawings import INK, PAPER, camera_map, contact_sheet
from datamodules import PanelRooms, VideoQADataModule
from zoo.files.atomic_io import replace_file

OUTPUT = Path(__file__).with_name("room.png")
STATIONS, ROOMS = 8, 6  # of the camera, which looks at the floor and then at the wall; rooms with answers
WIDTH, TEXT, LINE, NAMES, COLUMN = 1620, 22, 32, 300, 88  # pixels


def main(runs: dict[str, Path]) -> None:
    """Draw the first room of the test split, and the answers of the runs about the first rooms.

    Args:
        runs: folders with a predictions.jsonl, by the name of the model.
    """
    data = VideoQADataModule(PanelRooms(), num_frames=2 * STATIONS)
    data.prepare_splits(("test",))
    scenes = data.dataset(data.scenes("test"))
    opened = scenes.open(0)
    shown = scenes.select(opened)[1::2]
    asked = [scene.questions[0] for scene in scenes.scenes[:ROOMS]]
    rows = {"room": ["this", *map(str, range(2, ROOMS + 1))]}
    rows["true distance"] = [f"{float(question.ground_truth):.1f}" for question in asked]
    for name, folder in runs.items():
        answers = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
        said = {answer["id"]: answer["prediction"] for answer in answers}
        rows[name] = [said[question.id] for question in asked]
    path = camera_map(opened, shown, "Cameras tell where:")
    sheet = contact_sheet(opened.video.read(shown), shown, columns=4)

    picture = Image.new("RGB", (WIDTH, path.height), PAPER)
    picture.paste(path, (0, 0))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    x, y = path.width + 28, 8
    draw.text((x, y), "Images tell which frames show the panel, not where it is:", INK, font)
    picture.paste(sheet, (path.width + 20, y := y + LINE))
    y += sheet.height + 10
    for line in textwrap.wrap(asked[0].question, 62):
        draw.text((x, y), line, INK, font)
        y += LINE
    for name, cells in rows.items():
        y += LINE
        draw.text((x, y), name, INK, font)
        for column, cell in enumerate(cells):
            draw.text((x + NAMES + column * COLUMN, y), cell, INK, font, anchor="ra")
    replace_file(OUTPUT, lambda file: picture.save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main({name: Path(folder) for name, folder in (argument.split("=", 1) for argument in sys.argv[1:])})
