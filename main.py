"""python main.py <command> in a checkout: the same as `spatial-vlm-zoo <command>`, see `commands/main.py`."""

from commands.main import COMMANDS, main, run

__all__ = ["COMMANDS", "main", "run"]

if __name__ == "__main__":
    main()
