"""The files of the geometry cache: damage, interrupted writes, and the limit on the size."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.zoo.geometry.caching import ask, entries, frames, same
from zoo.errors import InputError
from zoo.files import cache as files
from zoo.files.atomic_io import PARTIAL
from zoo.geometry import GeometryCache
from zoo.geometry.cache import pack

FORK = multiprocessing.get_context("fork")


# ---- damage and interrupted writes --------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a byte short": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "a stump": lambda content: content[:5],
    "empty": lambda content: b"",
    "a bit": lambda content: content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
    "zeros": lambda content: content[:-64] + bytes(64),
    "longer": lambda content: content + b"\n",
    "noise": lambda content: os.urandom(1000),
}


def test_a_damaged_entry_is_computed_again(cached) -> None:
    (expected,) = ask(cached(), frames(), cameras=False)
    encoder = cached()
    (path,) = entries(encoder)
    whole = path.read_bytes()
    for number, (name, damage) in enumerate(DAMAGES.items(), 1):
        path.write_bytes(damage(whole))
        (again,) = ask(encoder, frames(), cameras=False)
        assert encoder.num_computed == number and same(again, expected) and path.read_bytes() == whole, name


def test_a_killed_process_leaves_no_partial_entry(cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are whole or absent, whenever the process is killed."""

    opened = Path.open

    class Slow:
        """A file that is written in small pieces."""

        def __init__(self, path: Path) -> None:
            self.file = opened(path, "wb", buffering=0)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            for start in range(0, len(content), 1 << 18):
                self.file.write(content[start : start + (1 << 18)])
                time.sleep(0.001)

        def flush(self) -> None: ...

        def fileno(self) -> int:
            return self.file.fileno()

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Slow(path))
    cache = cached().cache
    packed = pack({"patches": torch.randn(8, 64, 64, 64)}, "bfloat16")

    def write() -> None:
        for number in range(10_000):
            cache.write({"number": number}, packed)

    cut_short = 0
    for attempt in range(8):
        process = FORK.Process(target=write)
        process.start()
        time.sleep(0.1 + 0.013 * attempt)
        process.kill()
        process.join()
        partial = list(cache.path.glob(f"*{PARTIAL}"))
        cut_short += len(partial)
        for number in range(len(list(cache.path.glob("*.safetensors")))):
            assert all(map(torch.equal, cache.read({"number": number}).values(), packed.values()))
        for path in partial:
            os.utime(path, (0, 0))  # as if it had been abandoned long ago
    assert cut_short > 0  # the kills did come in the middle
    GeometryCache(cache.folder).write({"number": -1}, packed)
    assert not list(cache.path.glob(f"*{PARTIAL}"))


def test_two_processes_share_a_folder(cached) -> None:
    scenes = [frames(seed=seed) for seed in range(6)]
    barrier, results = FORK.Barrier(2), FORK.SimpleQueue()

    def fill(order: int) -> None:
        encoder = cached()
        barrier.wait()
        for scene in scenes[::order]:
            (found,) = ask(encoder, scene)
            results.put((order, found.patches.float().sum().item()))

    processes = [FORK.Process(target=fill, args=(order,)) for order in (1, -1)]
    for process in processes:
        process.start()
    said = [results.get() for _ in range(12)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    sums = [[value for order, value in said if order == mine] for mine in (1, -1)]
    assert sums[0] == sums[1][::-1] and len(set(sums[0])) == 6
    assert len(entries(encoder := cached())) == 12  # tokens and cameras of six
    ask(encoder, *scenes)
    assert encoder.num_computed == 0 and not list(encoder.cache.path.glob(f"*{PARTIAL}"))


@pytest.mark.slow
def test_two_writers_that_are_killed_at_any_moment_read_what_was_written(tmp_path: Path) -> None:
    """In a folder that holds half of the entries, so that each writer evicts what the other one reads."""
    one = pack({"patches": torch.randn(4, 16, 16, 64), "depth": torch.randn(4, 56, 56)}, "bfloat16")
    packed = [{name: tensor * number for name, tensor in one.items()} for number in range(16)]
    limit = 8.5 * sum(tensor.nbytes for tensor in one.values())

    def work(seed: int) -> None:
        cache, generator = GeometryCache(str(tmp_path), max_size_gb=limit / 1e9), random.Random(seed)
        while True:  # an error ends the process
            number = generator.randrange(len(packed))
            found = cache.read({"number": number})
            if found is None:
                cache.write({"number": number}, packed[number])
            else:
                assert found.keys() == packed[number].keys()
                assert all(torch.equal(tensor, packed[number][name]) for name, tensor in found.items())

    def started(seed: int) -> BaseProcess:
        process = FORK.Process(target=work, args=(seed,))
        process.start()
        return process

    writers, waits = [started(0), started(1)], random.Random(0)
    for kills in range(20):
        time.sleep(waits.uniform(0.02, 0.15))
        writer = writers.pop(0)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL  # no error until then
        writers.append(started(2 + kills))
    for writer in writers:
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1.2 * limit  # one more entry at most
    cache = GeometryCache(str(tmp_path))
    found = [cache.read({"number": number}) for number in range(len(packed))]
    assert sum(each is not None for each in found) == len(list(tmp_path.glob("*.safetensors"))) > 4
    assert list(tmp_path.glob(f"*{PARTIAL}"))  # the kills did come in the middle


def test_an_entry_that_is_evicted_while_it_is_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors opens a file twice, the second time by torch."""
    cache, opened = GeometryCache(str(tmp_path)), torch.UntypedStorage.from_file
    cache.write({}, pack({"patches": torch.ones(1, 2, 2, 8)}, "bfloat16"))
    assert cache.read({}) is not None  # the control

    def evicted(path: str, *arguments: Any, **options: Any) -> torch.UntypedStorage:
        Path(path).unlink()
        return opened(path, *arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", evicted)
    assert cache.read({}) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_run_continues_if_entries_cannot_be_written(cached, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (before,) = ask(cached(), frames())

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "replace_file", refuse)
    encoder = cached()
    with pytest.warns(UserWarning, match=f"an entry can't be kept \\({os.strerror(code)}"):
        (found,) = ask(encoder, frames(seed=1))
    assert encoder.cache.write_error.errno == code and found.patches is not None
    assert same(*ask(encoder, frames()), before) and encoder.num_computed == 1  # nothing was lost


# ---- the limit ----------------------------------------------------------------------------------------------


def test_the_least_recently_used_entry_is_evicted(tmp_path: Path) -> None:
    packed = pack({"patches": torch.randn(1, 10, 10, 500)}, "bfloat16")
    cache = GeometryCache(str(tmp_path), max_size_gb=350_000 / 1e9)  # three of 100 kB
    names = "abcde"

    def put(name: str) -> None:
        cache.write({"name": name}, packed)
        time.sleep(0.02)  # times of files are coarse

    def there() -> str:
        return "".join(name for name in names if cache.file({"name": name}).exists())

    for name in "abc":
        put(name)
    assert there() == "abc"
    assert cache.read({"name": "a"}) is not None
    time.sleep(0.02)
    put("d")
    assert there() == "acd"  # b, although a is older
    put("e")
    assert there() == "ade"
    with pytest.raises(InputError, match=r"one scene takes 0.0001 GB: raise --model.geometry_cache.max_size_gb 5e-05"):
        GeometryCache(str(tmp_path), max_size_gb=5e-5).write({"name": "f"}, packed)
    assert there() == "ade"
    with pytest.raises(InputError, match="max_size_gb 0.0"):
        GeometryCache(max_size_gb=0.0)


def test_the_folder_never_exceeds_its_limit(tmp_path: Path) -> None:
    packed = pack({"patches": torch.randn(1, 1, 1, 500)}, "bfloat16")
    limit = 200_000
    cache, most = GeometryCache(str(tmp_path), max_size_gb=limit / 1e9), 0
    for number in range(200):
        cache.write({"number": number}, packed)
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert 0.9 * limit < most <= limit
