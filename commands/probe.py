"""python main.py probe: measure what the hidden states of a run contain, layer by layer, before and after training.

    python main.py probe
    python main.py probe runs/PRoPEMLLM-20261125-012048 --split train --scenes 200

The command fits linear maps (ridge regression) from hidden states. From visual tokens it predicts the depth beneath
them, the position and rotation of their cameras in the frame of the encoding's reference view (by default the first
view), and the scene's scale (its median depth). From the last token of a question, the only one that has seen all of
it, it predicts the last camera, the scale and the answer: a number, or the letter of an option (one column per letter,
1 for the right one).

R² is measured on scenes that were not used for the fit. 1 explains all of a target's variance, 0 is as good as its
mean. As a control, the targets of other scenes are predicted: their R² comes from a token's position alone. The table's
column `shuffled` shows the maximum over layers, before or after training. "Before" is the run's model with its initial
weights. The command writes probe.json and probe.png into the run's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from commands.parser import parse, run_parser
from zoo.errors import InputError

if TYPE_CHECKING:
    from commands.probes.hidden_states import SceneStates

MODELS = ("before", "after")
Split = Literal["train", "val", "test"]


def probe(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `probe`.

    Raises:
        InputError: The run can't be read, or too few of its scenes can.
    """
    parser = run_parser("probe", __doc__, replaces_data=False)
    parser.add_argument("--split", type=Split, default="test", help="which scenes")
    parser.add_argument("--scenes", type=int, default=100, help="largest number of scenes, from the start of the split")
    parser.add_argument("--tokens", type=int, default=64, help="largest number of visual tokens per scene")
    parser.add_argument("--folds", type=int, default=5, help="parts of the scenes in the cross-validation")
    parser.add_argument("--output", type=str | None, default=None, help="folder of the results; null uses the run's")
    settings = parse(parser, arguments)
    for name, least in (("scenes", 2), ("tokens", 1), ("folds", 2)):
        if settings[name] < least:
            raise InputError(f"--{name} {settings[name]}: at least {least}")

    # imported after parsing: these import PyTorch, which --help does not need
    from rich.console import Console

    from commands.probes.results import as_json, draw, probe_states, table
    from commands.runs import find_run
    from zoo.files.atomic_io import json_text, start_of_json, write_output
    from zoo.files.ownership import refuse_existing, refuse_other
    from zoo.weights.checkpoint import refuse_damaged
    from zoo.weights.saved_models import LAST_CHECKPOINT

    run = find_run(settings.run)
    refuse_damaged(run / LAST_CHECKPOINT)  # an evaluation of released weights has no checkpoint
    # a former result of the same options may be replaced, with its plot
    folder, asked = Path(settings.output or run).expanduser(), settings.as_dict()
    options = {
        "split": asked["split"],
        "max_scenes": asked["scenes"],
        "tokens": asked["tokens"],
        "folds": asked["folds"],
    }
    made_by = {"command": "python main.py probe", "run": str(run), **options}
    file, plot = folder / "probe.json", folder / "probe.png"
    refuse_other(file, start_of_json(made_by).encode(), option="--output")
    refuse_existing([] if file.exists() else [plot])
    probes = []
    for name in MODELS:
        scenes = _states(run, name, settings)
        if len(scenes) < 2:
            raise InputError(
                f"{run}: {len(scenes)} scenes of its {settings.split} split can be read, at least 2 are needed"
            )
        probes += probe_states(name, scenes, settings.folds)
    content = {**made_by, "scenes": len(scenes), "probes": as_json(probes)}
    write_output(file, json_text(content), start_of_json(made_by))
    draw(probes, len(scenes), plot)
    Console(highlight=False, width=120).print(table(probes, len(scenes)))
    print(f"probe: {len(probes[0].r2)} layers, see {plot} and {file.name} beside it")


def _states(run: Path, name: str, settings: Any) -> list[SceneStates]:
    """Return the hidden states of the run's scenes, computed by one of its models."""
    from commands.probes.hidden_states import probe_spec, scene_states
    from commands.runs import load_run
    from zoo.model import SpatialVLM
    from zoo.progress import progress
    from zoo.weights.saved_models import initial_model

    build = initial_model if name == "before" else SpatialVLM.from_pretrained
    options = settings.split, settings.scenes, settings.device, settings.trust_modules
    _, model, data, dataset = load_run(run, build, *options)
    dataset.spec = probe_spec(model)
    loaded = progress((dataset[n] for n in range(len(dataset))), f"probe {name}", "scenes", len(dataset))
    return list(scene_states(model, data.source.benchmark, loaded, settings.tokens, data.poses_in_prompt))
