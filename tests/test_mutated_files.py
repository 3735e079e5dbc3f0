"""Damaged files of users: each reader returns, or raises an error of one line that names the file.

Each mutation has a seed of its own, made of its kind and number, so that `mutated` repeats one that failed.
"""

from __future__ import annotations

import random
import traceback
import zlib
from pathlib import Path

import pytest
import torch

from tests.file_kinds import KINDS, Kind, checkpoint
from tests.file_mutations import in_bytes
from zoo import InputError, SpatialVLM, Task
from zoo.errors import input_error


def fault(kind: Kind, path: Path, content: bytes) -> str | None:
    """What is wrong with the outcome for a file of this content; None if it is read, or refused in one line."""
    path.write_bytes(content)
    try:
        kind.read(path)
    except Exception as raised:
        # as main.py: the type checks of these tests wrap errors, and so do libraries
        error = raised if isinstance(raised, kind.errors) else input_error(raised)
        if not isinstance(error, kind.errors):
            return _described(raised)
        message = str(InputError(error))  # what the zoo makes of an error about a file
        if message.splitlines() != [message]:
            return f"several lines: {_described(raised)}"
        return None if str(path.parent) in message else f"names no file: {_described(raised)}"
    return None


def _described(error: Exception) -> str:
    places = [f"{Path(p.filename).name}:{p.lineno}" for p in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' '.join(places[1:])}"


def mutated(kind: Kind, content: bytes, name: str, number: int) -> bytes:
    rng = random.Random(f"{name}/{number}")
    return (kind.inside if number % 2 else in_bytes)(content, rng)


def bomb(png: bytes) -> bytes:
    """A header of 10 gigapixels, with its checksum."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


DIGITS, DEEP, LONG = b"9" * 400, b"[" * 100_000, b'"' + b"x" * 300 + b'"'
CASES: tuple[tuple[str, bytes, bytes, str | None], ...] = (  # kind, text, replacement, the error if it is one
    ("cameras", b"[[30.0", b"[[" + DIGITS, "an integer of 400 digits"),
    ("cameras", b"[[[30.0", DEEP, "nested too deeply"),
    ("cameras", b"0.5,", b"NaN,", "increasing numbers"),
    ("questions", b'"a"', LONG, None),
    ("questions", b'"How many?"', b'["How many?"]', "missing or no text: question"),
    ("questions", b"null", DEEP, "nested too deeply"),
    ("conversations", b'"0.mp4"', LONG, None),
    ("predictions", b'"score": 1.0', b'"score": ' + DIGITS, "line 2: not valid JSON: an integer of 400 digits"),
    ("predictions", b"[0, 7]", DEEP, "nested too deeply"),
    ("selection", b'{"candidates": 5}', b"5", "made_by must be an object with the settings"),
    ("selection", b'"views": 4', b'"views": [4]', "made_by must be an object with the settings"),
    ("video.mp4", b"avc1", b"\0\0\0\0", "its codec is unknown"),
    ("video.mp4", b"Lavf", b"\xff\xfe\xff\xff", None),
    ("index", b'"model-00001-of-00001.safetensors"', LONG, "which its index names"),
    ("index", b"52", DIGITS, "an integer of 400 digits"),
    ("config.yaml", b"seed_everything: 0", b"seed_everything: &a [*a]", "can't be read"),
    ("config.yaml", b"hidden_size: 32", b"hidden_size: -32", "config.yaml: "),
)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_what_was_once_a_traceback(name: str, old: bytes, new: bytes, message: str | None, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    content = path.read_bytes()
    assert old in content
    kind.read(path)
    path.write_bytes(content.replace(old, new))
    if message is None:
        kind.read(path)
    else:
        with pytest.raises(kind.errors, match=message) as error:
            kind.read(path)
        assert str(path.parent) in str(error.value) and "\n" not in str(error.value)


def test_an_image_of_gigapixels_is_no_depth(tmp_path: Path) -> None:
    kind = KINDS["depth"]
    path = kind.write(tmp_path)
    path.write_bytes(bomb(path.read_bytes()))
    with pytest.raises(ValueError, match="0.png: unreadable depth image"):
        kind.read(path)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    for state in ({}, {"a": 1}, [1]):
        torch.save({**content, "state_dict": state}, path)
        with pytest.raises(InputError, match="last.ckpt"):
            Task.load_from_checkpoint(path)
    name = next(iter(content["state_dict"]))
    torch.save({**content, "state_dict": content["state_dict"] | {name: torch.ones(2)}}, path)
    for read in (Task.load_from_checkpoint, lambda path: SpatialVLM.from_pretrained(path.parents[1])):
        with pytest.raises(InputError, match=f"last.ckpt.*{name.removeprefix('model.')}") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a reader that hangs fails here
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    content = path.read_bytes()
    kind.read(path)  # negative control: the sound file
    numbers: dict[str, list[int]] = {}
    for number in range(kind.count):
        if what := fault(kind, path, mutated(kind, content, name, number)):
            numbers.setdefault(what, []).append(number)
    found = [f"{len(which)} of {kind.count}, such as {which[0]}: {what}" for what, which in numbers.items()]
    assert not found, "\n".join(found)
