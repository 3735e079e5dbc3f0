"""Files of runs: JSON lines, atomic writes, fingerprints of content, versions, and progress in a log."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datamodules.sources.base import build_once
from zoo import progress as module
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, json_lines, new_folder, parse_json, read_records, try_lock, write_whole
from zoo.files.fingerprint import content_fingerprint, file_fingerprint, fingerprint
from zoo.geometry import GeometryCache
from zoo.progress import progress
from zoo.versions import versions, zoo_version

RECORDS = [
    {"id": "a", "prediction": "23.5 m² ✓\u2028"},
    {"id": "b", "prediction": ""},
    {"id": "c", "prediction": "\ud800"},
]


def test_lines_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    file = JSONLines(tmp_path / "lines.jsonl")
    for record in RECORDS:
        file.append([record])
        assert read_records([tmp_path / "lines.jsonl"])[-1] == record  # at once
    file.append([])
    file.close()
    assert read_records([tmp_path / "lines.jsonl"]) == RECORDS
    assert (tmp_path / "lines.jsonl").read_bytes() == json_lines(RECORDS).encode(errors="backslashreplace")


def test_appended_lines_are_synced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    JSONLines(tmp_path / "lines.jsonl").append(RECORDS)
    write_whole(tmp_path / "whole", "text")
    assert synced == [(tmp_path / "lines.jsonl").stat().st_size, 4]


def test_half_a_line_is_cut_off_before_more_is_added(tmp_path: Path) -> None:
    path, content = tmp_path / "lines.jsonl", json_lines(RECORDS[:2]).encode()
    for cut in range(1, 12):
        path.write_bytes(content[:-cut])
        file = JSONLines(path)
        file.append(RECORDS[2:])
        file.close()
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [RECORDS[0], RECORDS[2]]
        assert read_records([path]) == [RECORDS[0], RECORDS[2]]


def test_no_line_is_written_through_a_link_and_none_of_a_users_is_cut(tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.write_text("export A=1\nalias b=c")
    (tmp_path / "answers.jsonl").symlink_to(profile)
    (tmp_path / ".test.lock").symlink_to(tmp_path / "new")
    for write in (lambda: JSONLines(tmp_path / "answers.jsonl"), lambda: try_lock(tmp_path / ".test.lock")):
        with pytest.raises(InputError, match="is a link"):
            write()
    assert profile.read_text() == "export A=1\nalias b=c" and not (tmp_path / "new").exists()
    file = JSONLines(profile)
    file.append(RECORDS[:1])
    file.close()
    assert profile.read_text() == "export A=1\nalias b=c\n" + json_lines(RECORDS[:1])


@pytest.mark.parametrize("is_inherited", [False, True])
def test_only_an_inherited_lock_is_held_by_children_after_a_kill(is_inherited: bool, tmp_path: Path) -> None:
    """A training is resumed at once, but rooms are prepared anew only when the workers no longer write them."""
    path = tmp_path / "here.lock"
    child = f"""
import os, time
from pathlib import Path
from zoo.files.atomic_io import try_lock
lock = try_lock(Path({str(path)!r}), {is_inherited})
if os.fork():
    time.sleep(60)
print("ready", os.getpid(), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline().split()[1])
    try:
        assert try_lock(path, is_inherited) is None
        process.kill()
        process.wait()
        lock = try_lock(path, is_inherited)
        assert (lock is None) == is_inherited
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_without_locks_on_a_file_system_data_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    build_once(tmp_path / "rooms", "waiting", lambda folder: (folder / "a").touch())
    assert (tmp_path / "rooms/a").exists()
    (tmp_path / "mine").write_text("text")
    (tmp_path / ".others.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a link"):
        build_once(tmp_path / "others", "waiting", lambda folder: None)
    assert (tmp_path / "mine").read_text() == "text"


# opens the file for each row, as a study does, and prints the rows that are on disk
WRITER = """
import sys
from pathlib import Path
from zoo.files.atomic_io import JSONLines
print("ready", flush=True)
sys.stdin.readline()
for row in range(int(sys.argv[3])):
    file = JSONLines(Path(sys.argv[1]))
    file.append([{"id": f"{sys.argv[2]}{row}", "prediction": "x" * 3000}])
    file.close()
    print(f"{sys.argv[2]}{row}", flush=True)
"""


@pytest.mark.parametrize("kills", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_lose_no_row(kills: bool, tmp_path: Path) -> None:
    path, rows = tmp_path / "lines.jsonl", 100_000 if kills else 200
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    on_disk = []
    if kills:
        on_disk += [writers[0].stdout.readline().strip() for _ in range(300)]
        for writer in writers:
            writer.kill()
    on_disk += [line for writer in writers for line in writer.communicate(timeout=60)[0].splitlines()]
    assert {record["id"] for record in read_records([path])} >= set(on_disk)
    assert kills or len(on_disk) == len(path.read_bytes().splitlines()) == 2 * rows


def test_invalid_lines_are_skipped_and_the_first_record_of_an_id_is_kept(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_bytes(json_lines(RECORDS[:1]).encode() + b'\n7\n[]\n{"id": 1}\n{"no": "id"}\n\xff\n\0\0\0\n{"id": "b"')
    two.write_text(json_lines([{"id": "a", "prediction": "another"}, RECORDS[1]]))
    assert read_records([one, tmp_path / "none.jsonl", two]) == RECORDS[:2]


def test_a_write_that_is_cut_off_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder/whole.json"
    write_whole(path, "former")
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, "half of it")
    assert path.read_text() == "former"
    monkeypatch.undo()
    write_whole(path, "new")
    assert path.read_text() == "new" and not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("write", [lambda path: write_whole(path, "text"), JSONLines], ids=["whole", "lines"])
def test_write_errors_name_the_file(write, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="/here can't be written"):
        write(tmp_path / "here")


def test_a_new_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "absent"):
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / name) as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]
    # two processes write to one folder
    with pytest.raises(InputError, match="mine is there already and not empty"), new_folder(tmp_path / "mine") as late:
        (late / "file").write_text("late")
        with new_folder(tmp_path / "mine") as folder:
            (folder / "file").write_text("whole")
    assert (tmp_path / "mine/file").read_text() == "whole" and len([*tmp_path.rglob("*")]) == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1" * 301, "an integer of 301 digits"),
        ("[" * 100_000, "nested too deeply"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_json_that_python_cannot_write_is_refused(text: str | bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_json(text)


# ---- fingerprints ----------------------------------------------------------------------------------------------

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


# ---- versions and progress -------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("zoo/model.py", "configs/prope.yaml", "tests/test_model.py", "studies/results/one.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_version_names_the_commit_and_whether_code_changed(clone: Path, tmp_path_factory) -> None:
    version, _, commit = zoo_version(clone).partition("+g")
    assert version == versions()["zoo"].partition("+")[0]
    assert len(commit) == 12 and git(clone, "rev-parse", "HEAD").startswith(commit)
    assert "+" not in zoo_version(clone / "zoo")  # as a package that is installed within another project's clone
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "--quiet")
    assert "+" not in zoo_version(empty)  # no commit yet
    for changed, is_dirty in (
        ("studies/results/one.jsonl", False),  # a study writes it while it runs
        ("tests/test_model.py", False),
        ("configs/prope.yaml", True),
    ):
        (clone / changed).write_text("2\n")
        assert zoo_version(clone).endswith(".dirty") == is_dirty, changed
    git(clone, "checkout", "--quiet", "configs")
    (clone / "zoo/encodings").mkdir()
    (clone / "zoo/encodings/mine.py").write_text("2\n")  # not tracked yet
    assert zoo_version(clone).endswith(".dirty")


@pytest.mark.parametrize("total, shown", [(None, r"/4 \(\d+%\)"), (0, "")])
def test_a_log_gets_lines_but_none_of_what_is_done(total: int | None, shown: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    items = range(4) if total is None else iter(range(4))
    assert list(progress(items, "rooms", "scenes", total or None)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(rf"rooms {number}{shown}  \S+ it/s", line) for number, line in enumerate(lines, 1))
    assert len(lines) == (4 if total == 0 else 3)  # of unknown length, the last is like any other


def test_one_variable_moves_all_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from datamodules.frame_cache import FrameCache
    from datamodules.sources import Rooms

    monkeypatch.chdir(tmp_path)
    few = {"scenes": (1, 0, 0), "frames": 12, "size": 16, "workers": 1}
    assert Rooms(**few).folder.parent == Path("cache/rooms") and FrameCache().path == Path("cache/frames")
    monkeypatch.setenv("ZOO_CACHE", "shared")
    source = Rooms(**few)
    assert source.folder.parent == Path("shared/rooms") and FrameCache().path == Path("shared/frames")
    assert Rooms(root="mine", **few).folder.parent == Path("mine")  # the control: not inside cache/
    source.prepare()
    assert f"rendering rooms into {source.folder}/" in capsys.readouterr().err and source.scenes("train")
    source.prepare()
    assert "rendering" not in capsys.readouterr().err and not Path("cache").exists()
