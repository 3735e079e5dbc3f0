import re
import sys

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from toy import Toy, record, trainer

from callbacks.progress import PlainProgress, progress_bar
from zoo import progress

SCENES = [[record(str(i), "object_counting", "4", "4")] for i in range(40)]  # 20 batches


def run(folder, **settings):
    return trainer(folder, PlainProgress(), enable_progress_bar=True, **settings)


def starting_with(name, text):
    return [line for line in text.splitlines() if line.startswith(name)]


def test_fit_prints_every_tenth_with_loss_rate_and_eta(tmp_path, capsys):
    run(tmp_path, max_steps=50, num_sanity_val_steps=2).fit(Toy(SCENES))
    text = capsys.readouterr().out
    train = starting_with("train", text)
    assert [int(re.match(r"train (\d+)/50 \(", line).group(1)) for line in train] == list(range(5, 51, 5))
    assert all(re.search(r"loss \S+  \S+ it/s  ETA \d\d:\d\d$", line) for line in train)
    validation = starting_with("validation", text)
    assert len(validation) == 2  # the end of each whole epoch; the sanity check is silent
    assert all(line.startswith("validation 20/20 (100%)") for line in validation)


def test_accumulation_counts_optimizer_steps_and_shows_the_logged_loss(tmp_path, capsys):
    run(tmp_path, max_epochs=1, accumulate_grad_batches=4, limit_val_batches=0).fit(Toy(SCENES))
    train = starting_with("train", capsys.readouterr().out)
    assert [line.split("  ")[0] for line in train] == [f"train {i}/5 ({i / 5:.0%})" for i in range(1, 6)]
    assert "loss 1 " in train[0]  # (1 - 2)² at the toy's first step, which returns half of it


def test_test_validate_and_predict_print_every_tenth(tmp_path, capsys):
    for name, verb in (("test", "test"), ("validation", "validate"), ("predict", "predict")):
        getattr(run(tmp_path), verb)(Toy(SCENES))
        printed = starting_with(name, capsys.readouterr().out)
        assert len(printed) == 10
        assert printed[-1].startswith(f"{name} 20/20 (100%)")
        assert all("ETA" in line and "it/s" in line for line in printed)


def test_slow_loops_print_by_the_clock(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    run(tmp_path).test(Toy(SCENES))
    assert len(starting_with("test", capsys.readouterr().out)) == 20


def test_a_resumed_fit_counts_from_where_it_was(tmp_path, capsys):
    first = run(tmp_path, max_steps=10, limit_val_batches=0)
    model = Toy(SCENES)
    first.fit(model)
    first.save_checkpoint(tmp_path / "ten.ckpt")
    capsys.readouterr()
    run(tmp_path, max_steps=30, limit_val_batches=0).fit(Toy(SCENES), ckpt_path=tmp_path / "ten.ckpt")
    train = starting_with("train", capsys.readouterr().out)
    assert [line.split()[1] for line in train] == [f"{step}/30" for step in range(12, 31, 2)]


@pytest.mark.parametrize(("terminal", "kind"), [(True, TQDMProgressBar), (False, PlainProgress)])
def test_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch, terminal, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert isinstance(progress_bar(), kind)
