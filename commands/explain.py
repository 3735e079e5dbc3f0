"""python main.py explain: measure which views an answer depends on, and show what its tokens attend to.

    python main.py explain --question 0012
    python main.py explain runs/mine-<time> --question 0012 --question 0044
    python main.py explain runs/mine-<time> --question 0012 --answer 3.5

An id is one of predictions.jsonl. Of each view (a temporal patch: two frames of a video, or an image) three effects on
the log-probability of the answer, the sum over its tokens, are measured:

    hidden            no later token of the decoder sees the 2D tokens of the view; all positions stay
    alone             no later token sees the 2D tokens of the other views. Near 0: this view is enough
    without_camera    the model is not told the view's camera

-2 nats: the answer becomes 7 times less probable. The effects are causal. Where two views show the same thing, hiding
one may change nothing; `alone` tells such views from those that do not matter. A fusion or a view mixer that mixes
views has written the content of a hidden view into the tokens of others, and these tokens stay. The first view's camera
is the origin of the others in some encodings. From recurrent layers (Qwen3.5) no view can be hidden.

Attention stands beside the effects: for each layer, how much the answer's tokens attend to each view and patch, the
mean over heads. It shows no cause.

The command writes <id>.json and <id>.png into the folder `explanations` of the run. With --answer, --data or --split,
and for an id with other letters than those of a file's name, a digest follows the id. A report shows the pictures of
the run's own answers. In Python, `commands.explaining.explain_question` returns the arrays. Rooms that are not rendered
yet are rendered first, all of the split's.
"""

from __future__ import annotations

from pathlib import Path

from commands.parser import parse, run_parser
from zoo.errors import InputError, printable

FOLDER = "explanations"


def explain(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `explain`.

    Raises:
        InputError: The run or a scene can't be read, or there is no such question.
    """
    # jsonargparse needs the type, which imports PyTorch
    from datamodules.sources.base import Split

    parser = run_parser("explain", __doc__)
    parser.add_argument("--question", type=str, action="append", required=True, help="an id; may be repeated")
    answer_help = "the answer to explain; null is the model's own"
    parser.add_argument("--answer", type=str | None, default=None, help=answer_help)
    parser.add_argument("--split", type=Split, default="test", help="the split of the questions")
    output_help = f"folder of the results; null is {FOLDER} in the run's"
    parser.add_argument("--output", type=str | None, default=None, help=output_help)
    settings = parse(parser, arguments)

    from commands.explaining import as_json, draw, explain_question, find_question, load_explained, table
    from commands.runs import find_run
    from evaluation.drawings import save_picture
    from zoo.files.atomic_io import json_text, start_of_json, write_output
    from zoo.files.fingerprint import fingerprint
    from zoo.files.ownership import file_name, make_if_absent
    from zoo.progress import progress

    run = find_run(settings.run)
    folder = Path(settings.output).expanduser() if settings.output else run / FOLDER
    if folder.is_symlink():  # someone else's run may name any folder of this machine
        raise InputError(
            f"{folder} is a link, which is not followed: remove it, or choose another folder with --output"
        )
    make_if_absent(folder)
    loaded = load_explained(run, settings.split, settings.device, settings.trust_modules, settings.data)
    for id in settings.question:
        find_question(loaded, id)
    changed = {name: settings[name] for name in ("answer", "data") if settings[name] is not None}
    if settings.split != "test":
        changed["split"] = settings.split
    for id in progress(settings.question, "explain", "questions"):
        explained = explain_question(loaded, id, settings.answer)
        picture, name = draw(explained), file_name(id)
        is_plain = name == id and not changed
        file = folder / f"{name if is_plain else f'{name}-{fingerprint([id, changed])[:8]}'}.json"
        made_by = {"made_by": "main.py explain", "id": id}
        write_output(file, json_text({**made_by, **changed, **as_json(explained)}), start_of_json(made_by))
        save_picture(picture, file.with_suffix(".png"), option="--output")
        print(printable(f"{explained.scene}: {explained.question.question}\n  {explained.answer}"))
        print(table(explained).to_string(index=False))
        print(f"explain: see {file} and {file.with_suffix('.png').name}")
