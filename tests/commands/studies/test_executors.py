"""Jobs run on this machine or through submitit; one that fails is named, and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands.studies.executors import Executor, Job, LocalExecutor, SubmititExecutor
from zoo.errors import InputError


@dataclass(frozen=True)
class Write(Job):
    """Writes a file, or fails."""

    file: Path

    def prepare(self) -> None:
        self.file.parent.mkdir(exist_ok=True)

    def __call__(self) -> str | None:
        if self.file.name == "bad":
            return "it is bad"
        if self.file.name == "worse":
            raise RuntimeError("it is worse")
        self.file.write_text("made")
        return None


def outcomes(executor: Executor, folder: Path, names: Sequence[str]) -> dict[str, str | None]:
    return {job.file.name: failure for job, failure in executor.execute([Write(folder / "out" / n) for n in names])}


def test_a_job_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    assert outcomes(LocalExecutor(2), tmp_path, ["a", "bad", "b"]) == {"a": None, "bad": "it is bad", "b": None}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert outcomes(LocalExecutor(2), tmp_path, []) == {}


@pytest.mark.slow
def test_submitit_runs_the_same_jobs(tmp_path: Path) -> None:
    executor = SubmititExecutor(2, "local", tmp_path / "submitit", {"timeout_min": 5, "partition": "gpu"})
    found = outcomes(executor, tmp_path, ["a", "bad", "worse"])
    assert found["a"] is None and found["bad"] == "it is bad" and (tmp_path / "out/a").read_text() == "made"
    log = str(found["worse"]).rpartition("(see ")[2].removesuffix(")")
    assert "it is worse" in Path(log).read_text()
    assert list((tmp_path / "submitit").glob("*_result.pkl"))  # other processes ran them


@pytest.mark.parametrize(
    ("cluster", "parameters", "expected"),
    [
        ("slurm", {}, "srun"),
        ("local", {"partitoin": "gpu"}, "partitoin"),
        ("local", {"timeout_min": "a"}, "timeout_min"),
    ],
)
def test_what_submitit_refuses_is_one_line(cluster: str, parameters: dict, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"submitit refuses.*{expected}") as error:
        SubmititExecutor(2, cluster, tmp_path, parameters)
    assert "\n" not in str(error.value)


def test_submitit_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="submitit is not installed: pip install"):
        SubmititExecutor(2, "slurm", tmp_path, {})
