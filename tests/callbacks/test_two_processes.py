import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import golden_scenes

from zoo.metrics import VSIBenchScore

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same fit and test by one process and by two (gloo)."""
    root = HERE.parents[1]
    made = {}
    for processes in (1, 2):
        made[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        command = [sys.executable, str(HERE / "toy.py"), str(made[processes]), str(processes)]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        (made[processes] / "stdout").write_text(done.stdout)
    return made


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n") if line]


def test_the_numbers_are_the_same(folders):
    one, two = (json.loads((folders[n] / "metrics.json").read_text()) for n in (1, 2))
    for metrics in (one, two):  # trained apart, the weights differ in rounding
        assert metrics["reproduction"].pop("weights")
    assert one == two
    assert one["counts"]["questions"] == sum(map(len, golden_scenes()))
    assert one["counts"]["failed"] == 18 and one["objectives"]["off"] > 0
    metric = VSIBenchScore()
    for scene in golden_scenes():
        keys = ("prediction", "ground_truth", "question_type", "id")
        metric.update(*([each[key] for each in scene] for key in keys))
    assert {key: one[key] for key in metric.compute()} == metric.compute()


def test_no_sample_twice_although_the_sampler_repeats_some(folders):
    seen = sum(int((folders[2] / f"seen.{rank}").read_text()) for rank in (0, 1))
    one, two = predictions(folders[1]), predictions(folders[2])
    assert seen > len(one)  # else this shows nothing
    by_id = {line["id"]: line for line in two}
    assert len(by_id) == len(two)
    assert by_id == {line["id"]: line for line in one}
    assert not list(folders[2].glob("predictions.rank*"))


def test_one_process_prints(folders):
    for folder in folders.values():
        assert (folder / "stdout").read_text().count("question type") == 2  # val of the fit's epoch, test


def test_the_monitored_checkpoint_was_saved(folders):
    assert all((folder / "best.ckpt").exists() for folder in folders.values())
