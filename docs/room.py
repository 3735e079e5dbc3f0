"""The picture of the README: a rendered room, its camera path, a question, and the answers of trained models.

    python main.py study studies/models.yaml --columns loop --seeds 0 --output runs/room
    python -m docs.room Qwen25VL=runs/room/runs/Qwen25VL-loop-0 SpatialMLLM=runs/room/runs/SpatialMLLM-loop-0 ...

Writes docs/room.png. The runs are tests on the rooms with loop paths; their predictions.jsonl hold the answers.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from callbacks.camera_map import camera_map
from callbacks.contact_sheet import INK, PAPER, contact_sheet
from datamodules import Rooms, VideoQADataModule
from zoo.files.atomic_io import replace_file

OUTPUT = Path(__file__).with_name("room.png")
FRAMES, SHOWN, ROOMS = 16, 8, 6  # frames that the models see, and that the picture shows; rooms with answers
WIDTH, TEXT, LINE, NAMES, COLUMN = 1620, 22, 32, 250, 88  # pixels


def main(runs: dict[str, Path]) -> None:
    """Draw the first room of the test split, and the answers of the runs about the first rooms.

    Args:
        runs: folders with a predictions.jsonl, by the name of the model.
    """
    data = VideoQADataModule(Rooms(trajectory="loop"), num_frames=FRAMES)
    data.prepare_splits(("test",))
    scenes = data.dataset(data.scenes("test"), data.sampler)
    opened = scenes.open(0)
    frames = scenes.select(opened.view())
    asked = [scene.questions[0] for scene in scenes.scenes[:ROOMS]]
    rows = {"room": ["this", *map(str, range(2, ROOMS + 1))]}
    rows["true area"] = [f"{float(question.ground_truth):.1f}" for question in asked]
    for name, folder in runs.items():
        answers = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
        said = {answer["id"]: answer["prediction"] for answer in answers}
        rows[name] = [said[question.id] for question in asked]
    path = camera_map(opened.view(), frames, "from above:")
    shown = frames[:: FRAMES // SHOWN]
    sheet = contact_sheet(opened.read(shown), shown, columns=4)

    picture = Image.new("RGB", (WIDTH, path.height), PAPER)
    picture.paste(path, (0, 0))
    picture.paste(sheet, (path.width + 20, 20))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    x, y = path.width + 28, 40 + sheet.height
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
