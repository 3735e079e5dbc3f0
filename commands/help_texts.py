"""What `--help` says of Lightning's commands, in place of the docstrings of its Trainer."""

from __future__ import annotations

from argparse import ArgumentParser

DESCRIPTIONS = {
    "fit": """Train a model; the run's folder is in runs/.

    python main.py fit --config prope.yaml
    python main.py fit --config prope.yaml --config data_panels.yaml --trainer.max_steps 200
    python main.py fit --config prope.yaml --model.camera_encoding GTA
    python main.py fit --config runs/mine-<time>/config.yaml --ckpt_path last
""",
    "test": """Score a run on its benchmark: a table, metrics.json and predictions.jsonl in its folder.

    python main.py test
    python main.py test --ckpt_path runs/mine-<time>/checkpoints/last.ckpt
    python main.py test --data.perturbation OtherCameras
    python main.py test --config vg_llm.yaml --config vg_llm_released.yaml --config protocol_vg_llm.yaml
""",
    "validate": """Score a run on the validation split of its data.

    python main.py validate
""",
    "predict": """Answer one question about one video.

    python main.py predict --data.video clip.mp4 --data.question "How large is this room?"
""",
    "export": """Write the weights of a run as a folder, in the official layout where there is one.

    python main.py export --out folder
    python main.py export --ckpt_path runs/mine-<time>/checkpoints/last.ckpt --out folder
""",
}
START = (
    "a .ckpt file from which the training goes on, or `last`: the newest run of this model; of a run with another "
    "algorithm, the weights that it starts from"
)
TRAINED = (
    "a .ckpt file, or `last`: the newest run of this model; null: the newest run, and with a backbone of released "
    "weights those"
)
TRAINER = "Lightning's Trainer"
CONFIG = "a config, by its name in configs/ or its path; several compose in any order, and options win over them"
SEED = "seed of weights, of the order of the data and of all draws"


def explain(parser: ArgumentParser, command: str) -> None:
    """Replace what Lightning and jsonargparse say of options for others; the Trainer's many options come last."""
    texts = {"config": CONFIG, "seed_everything": SEED, "ckpt_path": START if command == "fit" else TRAINED}
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)
    for group in parser._action_groups:
        dests = [action.dest for action in group._group_actions]
        if "trainer.max_steps" in dests:
            group.title = TRAINER
        elif "ckpt_path" in dests:
            group.title = "Weights"
    parser._action_groups.sort(key=lambda group: group.title == TRAINER)
