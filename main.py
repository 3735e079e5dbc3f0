"""Run a command in a checkout: `python main.py` is the same as `spatial-vlm-zoo`, see `commands/main.py`."""

from commands.main import COMMANDS, main, run

__all__ = ["COMMANDS", "main", "run"]

if __name__ == "__main__":
    main()
