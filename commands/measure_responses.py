"""python main.py measure-responses: measure by how much a run's answers follow what is changed in its input.

    python main.py measure-responses
    python main.py measure-responses runs/PRoPEMLLM-20261125-012048 --scenes 100
    python main.py measure-responses runs/mine --data data_vsibench.yaml --output runs/mine/vsibench
    python main.py measure-responses runs/mine --interventions '[ScaledLengths, OtherWorlds]'
    python main.py measure-responses runs/mine --interventions+ TurnedPanelView --interventions.degrees 60

An intervention changes one thing that must change the answer by a known amount, and leaves all else. The *response* is
the slope of the answer on the true answer: 1 if the model uses the thing, 0 if it ignores it. The mean error stands
beside it. A nuisance is a change that must not change the answer. Its row has the size of the change alone, in the unit
of the answer, to compare with the change by an intervention that is effective.

On any data with cameras or depth, without labels:

    ScaledLengths       all lengths that the model is told, times factors from 0.8 to 1.25; the response is the exponent
                        of the answer: 1 for lengths, 2 for areas, 0 for counts. Frames show familiar things, so a sound
                        model may lie between 0 and it. Multiple choice has the change of the options' probabilities
    ScaledTranslations  the translations of the cameras alone; depth stays
    OtherWorlds         a nuisance: other world frames

On rooms with panels (`PanelRooms`), where the true answer of each variant is known:

    MovedPanel          the panel moves, cameras bit for bit
    TurnedPanelView     the told cameras of the views that show the panel turn, frames bit for bit
    TurnedCameras       all told cameras but the first view's turn
    TurnedEmptyViews    the told cameras of views that show no part of the panel turn: 0 is right
    OtherWalls          a nuisance: other walls and another lamp

The answer is the mean over candidate answers under the model's probabilities, since a greedy answer hides small
changes. `covered` is the probability of all candidates together: where it is low, the model mostly answers something
else. `can't respond` says why a model could not follow the change, whatever it learned. These rows are controls: they
must be 0.

The command writes responses.json, responses.png (if true answers are known) and, after each scene, responses.jsonl into
the run's folder. After an interruption the same command goes on. A model reads each scene once per variant, so the
three interventions of any data take 19 forward passes per scene.
"""

from __future__ import annotations

from pathlib import Path

from commands.parser import build, parse, run_parser
from zoo.errors import InputError


def measure_responses(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `measure-responses`.

    Raises:
        InputError: The run can't be read, or its data or its questions permit no such intervention.
    """
    # jsonargparse needs the class, which imports PyTorch
    from datamodules.interventions import Intervention
    from datamodules.sources.base import Split

    parser = run_parser("measure-responses", __doc__)
    named = "classes of datamodules/interventions.py; null uses all that the data permits"
    parser.add_argument("--interventions", type=list[Intervention] | None, default=None, help=named)
    parser.add_argument("--split", type=Split, default="test", help="which scenes")
    parser.add_argument("--scenes", type=int, default=50, help="largest number of scenes, from the start of the split")
    parser.add_argument("--output", type=str | None, default=None, help="folder of the results; null uses the run's")
    settings = parse(parser, arguments)
    if settings.scenes < 1:
        raise InputError(f"--scenes {settings.scenes}: at least 1")
    interventions = build(parser, settings).interventions

    from commands.responses.measuring import responses_of
    from commands.responses.results import RESPONSES, response_table
    from commands.runs import find_run

    run = find_run(settings.run)
    folder = Path(settings.output or run).expanduser()
    options = settings.split, settings.scenes, settings.device, settings.trust_modules
    found = responses_of(run, interventions, *options, data=settings.data, folder=folder)
    print(response_table(("", each) for each in found).to_string(index=False))
    print(f"measure-responses: {len(found)} responses, see {folder / RESPONSES}")
