"""A checkpoint is whole and consistent whenever a process is killed, and reading one runs no code."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO

from callbacks.checkpoint import CheckpointFiles
from tests.callbacks.resumable import Small, train
from zoo.errors import InputError

MEGABYTES = 2**18  # float32 numbers
OPERATIONS = ((os, "replace"), (os, "fsync"), (os, "unlink"), (Path, "unlink"), (Path, "open"), (torch, "save"))


def checkpoint(step: int, size: int = 10) -> dict[str, Any]:
    """A state whose parts all tell its step."""
    return {
        "global_step": step,
        "state_dict": {"weight": torch.full((size,), float(step))},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((2 * size,), float(step))}}, "param_groups": []}],
    }


def step_of(path: Path, io: CheckpointIO) -> int:
    """The step of the checkpoint in the files, all of whose parts are of that step."""
    found = io.load_checkpoint(path)
    (optimizer,) = found["optimizer_states"]
    parts = (found["state_dict"]["weight"], optimizer["state"][0]["exp_avg"])
    assert all((part == found["global_step"]).all() for part in parts)
    return int(found["global_step"])


def names(folder: Path) -> list[str]:
    return sorted(path.name.replace(path.name.split(".")[1], "*") for path in folder.iterdir())


def forked(work: Callable[[], None]) -> int:
    """Runs in a process of its own; returns its exit code."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the files ----------------------------------------------------------------------------------------------
def test_a_save_replaces_the_former_files(tmp_path: Path) -> None:
    io, last, best = CheckpointFiles(), tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    for step in (1, 2, 3):
        content = checkpoint(step)
        io.save_checkpoint(content, last)
        assert content.keys() == checkpoint(step).keys()  # Lightning's dictionary is left as it was
        if step == 2:
            io.save_checkpoint(content, best)
    assert (step_of(last, io), step_of(best, io)) == (3, 2)
    assert names(tmp_path) == ["best.*", "best.*.optimizer", "last.*", "last.*.optimizer"]
    assert torch.load(last, weights_only=True)["state_dict"]["weight"].tolist() == [3.0] * 10
    assert "optimizer_states" not in torch.load(last, weights_only=True)
    io.remove_checkpoint(best)
    assert names(tmp_path) == ["last.*", "last.*.optimizer"]
    torch.save(checkpoint(4), last)  # a checkpoint of one file is read too
    assert step_of(last, io) == 4


def test_only_training_needs_the_optimizers_file(tmp_path: Path) -> None:
    io, last = CheckpointFiles(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)
    next(tmp_path.glob("*.optimizer")).unlink()
    found = io.load_checkpoint(last)
    assert found["state_dict"]["weight"].tolist() == [1.0] * 10
    with pytest.raises(
        InputError, match=r"last\.\w+\.optimizer, the optimizer's state of last\.ckpt, is missing: keep"
    ):
        list(found["optimizer_states"])
    io.save_checkpoint({"state_dict": {}}, last)
    with pytest.raises(InputError, match=r"last\.ckpt holds no state of training"):
        list(io.load_checkpoint(last)["optimizer_states"])


def test_tensors_stay_on_disk_until_they_are_used(tmp_path: Path) -> None:
    io, last = CheckpointFiles(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1, 64 * MEGABYTES), last)

    def peak_of(load: Callable[[], Any]) -> int:
        def work() -> None:
            before = resident()
            held = load()
            os._exit(10 if resident() - before > 50 else 11)
            del held

        return forked(work)

    assert peak_of(lambda: io.load_checkpoint(last)) == 11
    assert peak_of(lambda: torch.load(last, weights_only=True)) == 10  # the control


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


# ---- killed -------------------------------------------------------------------------------------------------
def test_killed_before_any_operation_on_files_it_is_the_former_or_the_new_one(tmp_path: Path) -> None:
    """Between the two renames as well."""
    io, last, killed, seen = CheckpointFiles(), tmp_path / "last.ckpt", 0, set()
    io.save_checkpoint(checkpoint(0), last)
    for operation in range(1, 99):

        def work(step: int = operation, left: int = operation) -> None:
            for holder, name in OPERATIONS:
                original = getattr(holder, name)

                def counted(*words: Any, original: Any = original, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if not left:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*words, **options)

                setattr(holder, name, counted)
            io.save_checkpoint(checkpoint(step), last)

        before = step_of(last, io)
        code = forked(work)
        assert code in (0, -signal.SIGKILL)
        assert step_of(last, io) in (before, operation)
        seen.add(step_of(last, io) == operation)
        if not code:
            break
        killed += 1
    assert killed > 8 and seen == {True, False}
    assert names(tmp_path) == ["last.*", "last.*.optimizer"]  # nothing is left of the killed ones


@pytest.fixture
def other_disk() -> Any:
    """A temporary folder on another file system than the tests' own."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def saves(folder: Path, temporary: Path, io: CheckpointIO, size: int, done: Any) -> None:
    """Saves one state after another, until it is killed."""
    tempfile.tempdir = str(temporary)
    torch.set_num_threads(1)  # a fork has no threads of its parent's pool, and would wait for them
    while True:
        io.save_checkpoint(checkpoint(done.value, size), folder / "last.ckpt")
        done.value += 1


def lost_checkpoints(folder: Path, temporary: Path, io: CheckpointIO, kills: int) -> int:
    """Kills a process that saves all the time; counts the kills after which no checkpoint can be read."""
    chance, lost = random.Random(0), 0
    for _ in range(kills):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        io.save_checkpoint(checkpoint(0, 4 * MEGABYTES), folder / "last.ckpt")
        done = get_context("fork").Value("i", 0)
        process = get_context("fork").Process(target=saves, args=(folder, temporary, io, 4 * MEGABYTES, done))
        process.start()
        while done.value < 1 and process.is_alive():
            time.sleep(0.001)
        begun = time.monotonic()
        while done.value < 2 and process.is_alive():
            time.sleep(0.001)
        assert process.is_alive()
        time.sleep(chance.random() * (time.monotonic() - begun))  # somewhere in a save
        process.kill()
        process.join()
        try:
            step_of(folder / "last.ckpt", io)
        except (InputError, RuntimeError, OSError, AssertionError, EOFError):
            lost += 1
    return lost


@pytest.mark.slow
def test_killed_while_it_saves_with_the_temporary_folder_on_another_disk(tmp_path: Path, other_disk: Path) -> None:
    assert lost_checkpoints(tmp_path / "run", other_disk, CheckpointFiles(), 20) == 0
    assert lost_checkpoints(tmp_path / "run", other_disk, TorchCheckpointIO(), 30) > 0  # the control


# ---- full disks ---------------------------------------------------------------------------------------------
def limited(size: int, work: Callable[[], None]) -> int:
    """Runs where no file can grow beyond `size` bytes; 2 for an error that says so."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            work()
        except InputError as error:
            os._exit(2 if "can't be written: File too large; its former content is kept" in str(error) else 3)

    return forked(run)


def test_a_full_disk_is_one_line_and_keeps_the_former_checkpoint(tmp_path: Path) -> None:
    io, last = CheckpointFiles(), tmp_path / "last.ckpt"
    large = checkpoint(1) | {"state_dict": {"weight": torch.zeros(20_000)}}
    assert limited(60_000, lambda: io.save_checkpoint(large, last)) == 2
    assert not list(tmp_path.iterdir())  # nor is the state of an optimizer kept whose weights have no room
    io.save_checkpoint(checkpoint(1), last)
    for size in (100, 3000, 60_000):
        assert limited(size, lambda: io.save_checkpoint(checkpoint(2, 10_000), last)) == 2
        assert step_of(last, io) == 1
    assert limited(10**6, lambda: io.save_checkpoint(checkpoint(3, 10_000), last)) == 0
    assert step_of(last, io) == 3 and names(tmp_path) == ["last.*", "last.*.optimizer"]


@pytest.mark.parametrize("raised", [RuntimeError("no storage"), KeyboardInterrupt()])
def test_an_error_of_a_save_or_an_interrupt_is_itself(
    raised: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's writer, closed before its end by an interrupt, raises an error of its own."""
    io, last = CheckpointFiles(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)

    def save(content: object, file: object) -> None:
        try:
            raise raised
        finally:
            if isinstance(raised, KeyboardInterrupt):
                raise RuntimeError("unexpected pos 13329600 vs 13329492")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(type(raised)) as error:
        io.save_checkpoint(checkpoint(2), last)
    if isinstance(raised, RuntimeError):  # as its own cause it would keep main.py looking for the cause forever
        assert error.value is raised and raised.__cause__ is None
    assert step_of(last, io) == 1 and names(tmp_path) == ["last.*", "last.*.optimizer"]


def test_a_full_temporary_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError):
        tempfile.mkstemp()
    model = train(tmp_path, Small())
    saved = CheckpointFiles().load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert saved["state_dict"]["weight"].tolist() == model.weight.tolist()


# ---- pickles ------------------------------------------------------------------------------------------------
class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("asked", [None, False, True])
def test_no_code_of_a_checkpoint_is_run(asked: bool | None, tmp_path: Path) -> None:
    io, owned = CheckpointFiles(), tmp_path / "owned"
    torch.save(checkpoint(1) | {"callbacks": Malicious(owned)}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt holds posix\.system") as error:
        io.load_checkpoint(tmp_path / "last.ckpt", weights_only=asked)
    assert not owned.exists() and "\n" not in str(error.value) and "weights_only" not in str(error.value)

    io.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    torch.save({"optimizer_states": [Malicious(owned)]}, next(tmp_path.glob("*.optimizer")))
    with pytest.raises(InputError, match=r"optimizer holds posix\.system"):
        step_of(tmp_path / "last.ckpt", io)
    assert not owned.exists()
    torch.load(next(tmp_path.glob("*.optimizer")), weights_only=False)  # the control
    assert owned.exists()


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    io, last = CheckpointFiles(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)
    with pytest.raises(InputError, match=r"last\.ckpt can't be written: pathlib.* is neither a tensor nor"):
        io.save_checkpoint(checkpoint(2) | {"callbacks": {"mine": Path("somewhere")}}, last)
    assert step_of(last, io) == 1


@pytest.mark.parametrize("files", [{"optimizer_states": ["../../x.optimizer"]}, {"optimizer_states": [3]}, [3]])
def test_a_checkpoint_names_files_beside_it_alone(files: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "files": files}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="is no name of a file beside it"):
        list(CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt")["optimizer_states"])


def test_other_files_are_one_line(tmp_path: Path) -> None:
    for content in (b"", b"text", b"PK\x03\x04", b"\x80\x02}q\x00."):
        (tmp_path / "last.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=r"last\.ckpt is cut short, or no checkpoint: .") as error:
            CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no-such.ckpt can't be read as a checkpoint: .*No such file"):
        CheckpointFiles().load_checkpoint(tmp_path / "no-such.ckpt")
