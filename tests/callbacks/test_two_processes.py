import json
import multiprocessing
import sys

import pytest
import toy
from toy import golden_scenes

from zoo.metrics import VSIBenchScore


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same fit and test by one process and by two (gloo)."""
    made = {}
    for processes in (1, 2):
        made[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        started = multiprocessing.get_context("fork").Process(target=in_a_process, args=(made[processes], processes))
        started.start()
        started.join(120)
        assert started.exitcode == 0, (made[processes] / "stdout").read_text()[-3000:]
    return made


def in_a_process(folder, processes):
    with (folder / "stdout").open("w") as sys.stdout:
        sys.stderr = sys.stdout
        toy.main(folder, processes)


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n") if line]


def test_the_numbers_are_the_same(folders):
    one, two = (json.loads((folders[n] / "metrics.json").read_text()) for n in (1, 2))
    for metrics in (one, two):  # without a DataModule, nothing says in which order
        metrics["question_ids"].sort()
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
