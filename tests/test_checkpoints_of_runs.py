"""Which checkpoint a command finds, and which it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from commands.reports.scores import load
from tests.cli import Run, Trained, the_run


@pytest.mark.slow
def test_a_checkpoint_identifies_its_run(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    older = the_run(tmp_path)
    run("fit", "--config", "prope.yaml")
    (newer,) = set((tmp_path / "runs").iterdir()) - {older}
    checkpoint = str(older / "checkpoints/last.ckpt")
    assert f"test: run runs/{newer.name}, from runs/{newer.name}/" in run("test", logged=True)
    assert f"test: run runs/{older.name}, from {checkpoint}" in run("test", "--ckpt_path", checkpoint, logged=True)
    assert (older / "metrics.json").exists()
    run("test", "--ckpt_path", checkpoint, "--model.max_new_tokens", "3")  # the command line wins over the checkpoint
    settings = json.loads((older / "tests/max_new_tokens-3/metrics.json").read_text())["config"]["model"]["init_args"]
    assert settings["max_new_tokens"] == 3
    whole = (older / "metrics.json").read_bytes()
    run("test", "--ckpt_path", checkpoint, "--trainer.limit_test_batches", "1")  # a test of some batches is another one
    (part,) = older.glob("tests/limit_test_batches-1/metrics.json")
    assert (older / "metrics.json").read_bytes() == whole != part.read_bytes()
    with pytest.raises(SystemExit, match="the checkpoint is of another model: missing"):
        run("test", "--config", "prope.yaml", "--ckpt_path", checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "last", "best"),
    [
        (["--checkpoint.every_n_train_steps", "2"], 3, None),
        (
            ["--trainer.val_check_interval", "1", "--checkpoint.monitor", "val/all/micro", "--checkpoint.mode", "min"],
            3,
            1,
        ),
    ],
)
def test_last_is_the_newest_state_with_every_schedule(
    words: list[str], last: int, best: int | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.1, 0.2, 0.3))
    monkeypatch.setattr(
        "callbacks.metrics._scalars", lambda _, stage: {"val/all/micro": next(scores)} if stage == "val" else {}
    )
    folder = ["--trainer.default_root_dir", "again"]
    for steps, resumed in (("2", []), ("3", ["--ckpt_path", "last"])):
        scores = iter((0.1, 0.2, 0.3))
        run("fit", "--config", "qwen25_vl.yaml", *words, *folder, "--trainer.max_steps", steps, *resumed)
    saved = tmp_path / "again/checkpoints"
    assert torch.load(saved / "last.ckpt", weights_only=True)["global_step"] == last
    states = ["last"] if best is None else ["best", "last"]
    assert sorted(path.name for path in saved.glob("*.ckpt")) == [f"{state}.ckpt" for state in states]
    assert sorted(path.name.split(".")[0] for path in saved.glob("*.optimizer")) == states
    assert len(list(saved.iterdir())) == 2 * len(states)
    if best is not None:
        assert torch.load(saved / "best.ckpt", weights_only=True)["global_step"] == best


@pytest.mark.slow
def test_a_job_that_is_started_again_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", "qwen25_vl.yaml", "--trainer.default_root_dir", "job", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.max_steps"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run("fit", *words, "1")  # it was stopped before the first checkpoint
    assert "from job/checkpoints/last.ckpt" in run("fit", *words, "2", logged=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(SystemExit, match="job holds a trained run"):  # the control
        run("fit", *words, "2")


@pytest.mark.slow
def test_the_config_of_a_run_starts_another_one(run: Run, tmp_path: Path) -> None:
    """With its own logs, and from its own weights, also where the run was once resumed."""
    words = ["--config", "qwen25_vl.yaml", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"]
    run("fit", *words, "--trainer.default_root_dir", "one")
    run("fit", *words, "--trainer.default_root_dir", "one", "--ckpt_path", "last", "--trainer.max_steps", "3")
    before = {path: path.stat().st_mtime_ns for path in Path("one").rglob("*")}
    again = ["--config", "one/config.yaml", "--trainer.default_root_dir", "two"]
    assert "fit: run two, from random weights" in run("fit", *again, sized=False, logged=True)
    assert before == {path: path.stat().st_mtime_ns for path in Path("one").rglob("*")} and [
        *Path("two").glob("events.*")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "small_vggt.yaml"}


@pytest.mark.slow
def test_a_fit_does_not_replace_the_weights_of_another(run: Run, trained: Trained, tmp_path: Path) -> None:
    one = str(trained().relative_to(tmp_path))
    shutil.copytree(one, "two")
    before = {path: path.read_bytes() for path in tmp_path.rglob("checkpoints/*")}
    again = ["--config", f"{one}/config.yaml"]  # it names its folder
    elsewhere = ["--trainer.default_root_dir", one, "--ckpt_path", "two/checkpoints/last.ckpt"]
    words = ["--config", "qwen25_vl.yaml"]
    for given in (again, [*words, *elsewhere]):
        with pytest.raises(SystemExit, match=f"^error: {one} holds a trained run: add --ckpt_path last to go on with "):
            run("fit", *given, sized=given is not again)
    assert len(before) == 4 and before == {path: path.read_bytes() for path in before}
    run("fit", *again, "--ckpt_path", "last", "--trainer.max_steps", "3", sized=False)
    assert torch.load(tmp_path / one / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_damaged_and_absent_files_are_named_before_a_model_is_built(run: Run, trained: Trained, monkeypatch) -> None:
    folder = trained()
    monkeypatch.setattr("lightning.pytorch.cli.LightningCLI.instantiate_classes", None)
    (optimizer,) = folder.glob("checkpoints/*.optimizer")
    resumed = ["fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last"]
    started = [*resumed[:3], "--model.initial_weights"]
    for file, words in ((optimizer, resumed), (folder / "checkpoints/last.ckpt", ["probe", str(folder)])):
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(SystemExit, match=f"{file.name} is cut short, or no checkpoint: "):
            run(*words, sized=words is resumed)
    for start, problem in ((str(file), "is cut short, or no checkpoint"), ("nope.ckpt", "no such checkpoint")):
        with pytest.raises(SystemExit, match=f"^error: model.initial_weights: {start}:? {problem}"):
            run(*started, start)


@pytest.mark.slow
def test_an_untrained_model_is_not_tested(run: Run, trained: Trained) -> None:
    with pytest.raises(SystemExit, match="no finished run under runs/"):
        run("test")
    with pytest.raises(SystemExit, match="no run of this Qwen25VL"):
        run("fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last")
    with pytest.raises(SystemExit, match="this model has random weights"):
        run("test", "--config", "qwen25_vl.yaml")
    with pytest.raises(SystemExit, match="no such checkpoint"):
        run("test", "--config", "qwen25_vl.yaml", "--ckpt_path", "nowhere.ckpt")
    checkpoint = trained() / "checkpoints/last.ckpt"
    name = checkpoint.parent.parent.name.partition("-")[0]
    with pytest.raises(SystemExit, match=f"did you mean runs/{checkpoint.parent.parent.name}/checkpoints/last.ckpt"):
        run("test", "--ckpt_path", f"runs/{name}/checkpoints/last.ckpt")
    torch.save(torch.load(checkpoint, weights_only=True) | {"global_step": 0}, checkpoint)
    with pytest.raises(SystemExit, match="this model has random weights"):
        run("test")
    with pytest.raises(SystemExit, match="no run of this ConcatSplitMLLM"):  # a run of another model does not count
        run("test", "--config", "concat_split.yaml", "--ckpt_path", "last")


@pytest.mark.slow
def test_a_run_without_a_checkpoint_is_skipped_and_logged(run: Run, trained: Trained, tmp_path: Path) -> None:
    folder = trained()
    checkpoint = folder / "checkpoints/last.ckpt"
    broken = tmp_path / "runs/broken-off"
    broken.mkdir()
    (broken / "config.yaml").write_text((folder / "config.yaml").read_text())
    said = run("fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last", logged=True)
    assert "runs/broken-off is passed over: it has no checkpoint" in said
    assert f"fit: run runs/{folder.name}, from runs/{folder.name}/checkpoints/last.ckpt" in said
    (broken / "config.yaml").write_text("model: [")
    run("test", "--config", "qwen25_vl.yaml", "--ckpt_path", "last")
    shutil.rmtree(broken)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="last.ckpt is cut short"):
        run("test", "--ckpt_path", str(checkpoint))
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(SystemExit, match="no run of this Qwen25VL"):
        run("test", "--config", "qwen25_vl.yaml", "--ckpt_path", "last")


@pytest.mark.slow
def test_a_checkpoint_outside_its_run_has_its_own_config(run: Run, trained: Trained, tmp_path: Path) -> None:
    """It is the default of a test, what differs is recorded, and a training resumes with the same model only."""
    shutil.copytree(trained() / "checkpoints", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "runs")
    checkpoint = ["--ckpt_path", "elsewhere/last.ckpt"]
    run("test", *checkpoint)
    (own,) = (tmp_path / "runs").iterdir()
    assert json.loads((own / "metrics.json").read_text())["differs_from_training"] == {}
    other = ["--config", "qwen25_vl.yaml", "--model.time_index", "ConstantIndex"]
    said = run("test", *other, *checkpoint, logged=True)
    assert "test: differs from the training in model.time_index" in said
    (changed,) = set((tmp_path / "runs").iterdir()) - {own}
    recorded = json.loads((changed / "metrics.json").read_text())["differs_from_training"]["model.time_index"]
    assert recorded == {"training": None, "test": {"class_path": "zoo.ConstantIndex"}}
    with pytest.raises(SystemExit, match=r"last.ckpt: it was trained with another model.time_index, "):
        run("fit", *other, *checkpoint)
    run("fit", "--config", "elsewhere/last.ckpt", *checkpoint, "--trainer.max_steps", "3", sized=False)


@pytest.mark.slow
def test_a_checkpoint_in_the_folder_of_another_run_has_its_own_config(run: Run, trained: Trained) -> None:
    """Under any file name. It is no test of that run's own model, so it gets a folder inside the run's."""
    other = trained().rename("runs/other")
    (other / "checkpoints/last.ckpt").rename(other / "checkpoints/copied.pt")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("time_index: null", "time_index: {class_path: ConstantIndex}"))
    assert config != (other / "config.yaml").read_text()
    run("test", "--ckpt_path", str(other / "checkpoints/copied.pt"))
    recorded = json.loads((other / "tests/no-time_index/metrics.json").read_text())
    assert recorded["differs_from_training"] == {}
    assert recorded["config"]["model"]["init_args"]["time_index"] is None
    (other / "checkpoints/copied.pt").rename("copied.pt")
    run("test", "--ckpt_path", "copied.pt")


@pytest.mark.slow
def test_the_scores_of_a_checkpoint_are_not_written_into_another_run(run: Run, trained: Trained) -> None:
    """Whatever names that run. A report knows the tested weights by the record of their training."""
    one, two = trained().rename("runs/one"), Path("runs/two")
    shutil.copytree(one, two)
    for file in (two / "checkpoints/last.ckpt", Path("copied.ckpt")):
        saved = torch.load(one / "checkpoints/last.ckpt", weights_only=True)
        saved["run"]["config"] |= {"name": "clipped", "trainer": saved["run"]["config"]["trainer"] | {"max_steps": 7}}
        torch.save(saved, file)
    config, other = ["--config", str(one / "config.yaml")], ["--ckpt_path", str(two / "checkpoints/last.ckpt")]
    said = run("test", *config, *other, sized=False, logged=True)
    assert f"test: run {two}, from {two}/checkpoints/last.ckpt" in said and (two / "metrics.json").exists()
    run("test", *config, "--ckpt_path", "copied.ckpt", sized=False)  # belongs to no run
    assert not (one / "metrics.json").exists() and not (one / "tests").exists()
    tested, _ = load(Path("runs").iterdir())
    assert len(tested) == 2 and {each.options["trainer.max_steps"] for each in tested} == {7}
    assert all(each.label.startswith("clipped") for each in tested)


@pytest.mark.slow
def test_initial_weights_of_another_model_are_named(run: Run, trained: Trained) -> None:
    start = ["--model.initial_weights", str(trained() / "checkpoints/last.ckpt"), "--trainer.limit_val_batches", "0"]
    other = ["--config", "qwen25_vl.yaml", "--model.time_index", "ConstantIndex"]
    assert f"{start[1]} was trained with another model.time_index" in run("fit", *other, *start, logged=True)
    assert "was trained with another" not in run("fit", "--config", "qwen25_vl.yaml", *start, logged=True)


@pytest.mark.slow
def test_a_copied_run_is_trained_and_tested_where_its_files_are(run: Run, trained: Trained, tmp_path: Path) -> None:
    original = trained()
    shutil.copytree(original, copy := original.with_name("copy"))
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    run("fit", "--config", str(copy / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "3", sized=False)
    run("test", "--trainer.default_root_dir", str(copy))
    assert torch.load(copy / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert (copy / "metrics.json").exists()
    assert before == {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    shutil.move(copy, moved := tmp_path / "elsewhere" / "moved")
    run("test", "--trainer.default_root_dir", str(moved))
    assert (moved / "tests/repeat/metrics.json").exists() and not copy.exists()
