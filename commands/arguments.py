"""What a command line leaves out: where configs lie, and the run that `test` alone means."""

from __future__ import annotations

from pathlib import Path

from commands.runs import CONFIG, LAST, newest_run
from zoo.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
DEFAULTS = [str(CONFIGS / "data_rooms.yaml"), str(CONFIGS / "scale_tiny.yaml")]
EVALUATION = ("validate", "test", "predict")


def complete(arguments: list[str]) -> list[str]:
    """Bare config names become paths in `configs/`; an evaluation without a config gets the newest run's.

    Raises:
        InputError: a config that does not exist, or no run to evaluate.
    """
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--config=") else [argument]
    for i, word in enumerate(words[:-1]):
        if word in ("--config", "-c"):
            words[i + 1] = str(find_config(words[i + 1]))
    asks_help = any("help" in word or word == "-h" for word in words)
    if words[:1] and words[0] in EVALUATION and "--config" not in words and "-c" not in words and not asks_help:
        run = newest_run()
        from_run = ["--config", str(run / CONFIG), "--trainer.default_root_dir", str(run)]
        if not any(word.startswith("--ckpt_path") for word in words):
            from_run += ["--ckpt_path", str(run / LAST)]
        words[1:1] = from_run
    return words


def find_config(name: str) -> Path:
    """The config of this path, or of this name in `configs/`."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise InputError(f"no config {name}, neither here nor in configs/ ({known})")
