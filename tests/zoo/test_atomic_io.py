"""JSON lines that are durable once appended, and files that are replaced atomically."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, json_lines, new_folder, read_records, write_whole

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


@pytest.mark.parametrize("cut", range(1, 12))
def test_half_a_line_is_cut_off_before_more_is_added(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    content = json_lines(RECORDS[:2]).encode()
    path.write_bytes(content[:-cut])
    file = JSONLines(path)
    file.append(RECORDS[2:])
    assert read_records([path]) == [RECORDS[0], RECORDS[2]]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [RECORDS[0], RECORDS[2]]


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


@pytest.mark.parametrize("kills", [False, True])
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
    with pytest.raises(InputError, match=r"/here can't be written: Is a directory; its former content is kept"):
        write(tmp_path / "here")


def test_a_full_disk_is_an_input_error(tmp_path: Path) -> None:
    file = JSONLines(tmp_path / "lines.jsonl")
    with Path("/dev/full").open("ab", buffering=0) as full:
        os.dup2(full.fileno(), file._file.fileno())
    with pytest.raises(InputError, match=r"lines.jsonl can't be written: No space left on device"):
        file.append(RECORDS)
    file.close()  # has nothing left to write


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
