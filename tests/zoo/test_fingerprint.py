"""Fingerprints that earlier versions recorded are still those of their content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.test_structure import modules, names_in
from zoo.files.fingerprint import content_fingerprint, file_fingerprint, fingerprint
from zoo.geometry import GeometryCache

NUMBERS = torch.arange(6.0).reshape(2, 3).bfloat16()


def layer() -> nn.Linear:
    made = nn.Linear(2, 1)
    nn.init.ones_(made.weight)
    nn.init.zeros_(made.bias)
    return made


@pytest.mark.parametrize(
    ("content", "recorded"),
    [
        ({"b": [1, 2.5, None], "a": "ü"}, "b7f18cc94007955947035e918765ff9c"),  # names of caches and selections
        (NUMBERS, "8ddf696b635eb161cfc981637fd5af72"),  # settings of samplers
        ({"y": NUMBERS, "x": torch.ones(1, dtype=torch.long)}, "046a62515edd760887742283fc03900b"),  # geometry caches
        (layer(), "45323465f6d3237768f71cc12085ea4f"),  # weights of a test
        (iter(["one", "two\udcff"]), "d77d5f2c5c655bc10738ed59d1729267"),  # questions and prompts of a test
    ],
)
def test_recorded_fingerprints_of_values(content: object, recorded: str) -> None:
    assert fingerprint(content) == recorded


def test_recorded_fingerprints_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_bytes(bytes(range(256)) * 1000)
    (folder / "b").write_bytes(b"b")
    assert file_fingerprint(folder / "a") == "ef0d410f1322855d1860b5fcf502d705"
    assert file_fingerprint(folder) == "ed1e85b3e95b39bedb8b6d8c26bee189"
    whole = "b57b64b198d5d59ce5a22a9b9f25e72a"
    assert content_fingerprint(folder / "a") == GeometryCache(str(tmp_path)).weights_fingerprint(folder / "a") == whole


def test_the_middle_of_a_file_counts(tmp_path: Path) -> None:
    """A file of up to 1 MiB is read as a whole, a larger one by samples; all of its bytes count for weights alone."""
    for size in (1 << 20, 1 << 22):
        paths = [tmp_path / f"{size}-{number}" for number in range(2)]
        for number, path in enumerate(paths):
            content = bytearray(size)
            content[size // 2 - 50_000] = number
            path.write_bytes(content)
        assert len({file_fingerprint(path) for path in paths}) == (2 if size == 1 << 20 else 1)
        assert len({content_fingerprint(path) for path in paths}) == 2
    content[:] = bytes([1]) * size  # a training that changes everything between the ends
    content[:70_000] = content[-70_000:] = bytes(70_000)
    paths[1].write_bytes(content)
    assert len({file_fingerprint(path) for path in paths}) == 2


def test_other_content_has_another_fingerprint() -> None:
    tensors: list[Tensor] = [NUMBERS, NUMBERS.float(), NUMBERS.T.contiguous(), NUMBERS + 1]
    contents = [*tensors, *({name: each} for name in "xy" for each in tensors), b"text", "text", ["text"], {}, []]
    assert len({fingerprint(each) for each in [*contents, iter(["text"]), iter(["te", "xt"])]}) == len(contents) + 2


def test_one_file_computes_hashes() -> None:
    written = {name: path for name, path in modules().items() if "hashlib" in path.read_text()}
    assert [name for name, path in written.items() if "hashlib" in names_in(path)] == ["zoo.files.fingerprint"]
