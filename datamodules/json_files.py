"""JSON files, and rows of .jsonl, .json and .parquet files, with errors of one line that name the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zoo.files.strict_json import parse_json


def read_json(path: Path, remedy: str = "write or download it again") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        remedy: What the user can do, for the error.

    Raises:
        ValueError: The file is absent or damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"{path}: not valid JSON ({error}): {remedy}") from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with their numbers from 1.

    Args:
        path: A .json file with a list of objects, a .parquet file, or one object per line.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is damaged; names an invalid row.
    """
    rows: Iterable[tuple[int, Any]]
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list of objects, got a {type(content).__name__}")
        rows = enumerate(content, start=1)
    else:
        rows = enumerate(_read_parquet(path), start=1) if path.suffix == ".parquet" else _read_lines(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got a {type(row).__name__}")
        yield number, row


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet  # takes a moment

    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise
    except (ArrowException, OSError, ValueError) as error:  # its own, of reading, and of decoding texts
        raise ValueError(f"{path}: not a parquet file, or truncated: download it again") from error
