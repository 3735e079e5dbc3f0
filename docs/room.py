"""The picture of the README: a rendered room, its camera path, a question, and the answers of trained models.

python -m docs.room "without cameras=runs/demo/runs/without-cameras-0" "PRoPE=runs/demo/runs/PRoPE-0"

Writes docs/room.png. The runs are tests on the rooms with loop paths; their predictions.jsonl hold the answers.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from callbacks.visualization import INK, MAP, PAPER, camera_map, contact_sheet
from datamodules import Rooms, VideoQADataModule
from zoo.atomic_io import replace_file
from zoo.strict_json import read_json_lines

OUTPUT = Path(__file__).with_name("room.png")
SCENE, FRAMES, SHOWN = 3, 16, 8  # of the test split; frames that the models see, and that the picture shows
WIDTH, TEXT, LINE = 1500, 22, 32  # pixels


def main(runs: dict[str, Path]) -> None:
    """Draw the room with the answers of the runs.

    Args:
        runs: folders with a predictions.jsonl, by the name of the model.
    """
    data = VideoQADataModule(Rooms(trajectory="loop"), num_frames=FRAMES)
    data.prepare_data()
    scenes = data.dataset(data.scenes("test"), data.sampler)
    opened = scenes.open(SCENE)
    frames = scenes.select(opened.view())
    question = scenes.scenes[SCENE].questions[0]
    path = camera_map(opened.view(), frames, "camera path from above:").resize((MAP, MAP))
    shown = frames[:: FRAMES // SHOWN]
    sheet = contact_sheet(opened.read(shown), shown, columns=4)

    picture = Image.new("RGB", (WIDTH, MAP), PAPER)
    picture.paste(path, (0, 0))
    picture.paste(sheet, (MAP + 20, 20))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    lines = [*textwrap.wrap(question.question, 62), "", f"truth: {float(question.ground_truth):.1f}"]
    for name, folder in runs.items():
        answers = {line["id"]: line for line in read_json_lines(folder / "predictions.jsonl")}
        lines.append(f"{name}: {answers[question.id]['prediction']}")
    for number, line in enumerate(lines):
        draw.text((MAP + 26, 40 + sheet.height + number * LINE), line, INK, font)
    replace_file(OUTPUT, lambda file: picture.quantize(64).save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main({name: Path(folder) for name, folder in (argument.split("=", 1) for argument in sys.argv[1:])})
