"""Attention backends by name: of the decoder and the vision encoder separately, from transformers or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor
from transformers import modeling_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import SiglipAttention

from commands.parser import parse
from commands.scene_commands import OF_RUNS, run_parser
from tests.tiny import BACKBONES, difference, learned, one_per_row, tiny_batch, tiny_model, tiny_scene
from zoo import InputError
from zoo.backbones import base
from zoo.backbones.vision import SegmentAttention
from zoo.tasks import Task, VideoQATask

SMALL: dict[str, Any] = {"layers": 4, "hidden_size": 64, "heads": 2, "vision_hidden_size": 32}
HUB = "kernels-community/flash-attn2"


class Spy:
    """A causal attention without masks, as flash attention is. It notes the modules and the position ids."""

    def __init__(self) -> None:
        self.is_vision: set[bool] = set()
        self.positions: list[Tensor | None] = []

    def __call__(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        assert attention_mask is None
        self.is_vision.add(isinstance(module, SegmentAttention | SiglipAttention))
        self.positions.append(options.get("position_ids"))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, None, **options)


@pytest.fixture
def spy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """Attention under the name `seen`, and a kernel of the hub that needs no card."""
    made = Spy()
    for name in ("seen", HUB):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, made)
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)
    yield made


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("part", ["decoder", "vision"])
def test_decoder_and_vision_encoder_have_backends_of_their_own(family: str, part: str, spy: Spy) -> None:
    task = tiny_model("plain", family=family).train()
    batch = one_per_row(task, tiny_scene("a", family=family))
    expected = learned(task, task.loss(batch))
    backbone = BACKBONES[family](**SMALL, attn_implementation={part: "seen"}).load()
    configs = {"decoder": backbone.decoder.config, "vision": backbone.vlm.config.vision_config}
    assert configs[part]._attn_implementation == "seen"
    assert configs.keys() - {part} == {name for name in configs if "sdpa" in configs[name]._attn_implementation}
    config = task.model.backbone.decoder.config if part == "decoder" else task.model.backbone.vlm.config.vision_config
    config._attn_implementation = "seen"
    assert difference(learned(task, task.loss(batch)), expected) < 1e-4
    assert spy.is_vision == {part == "vision"}


def test_a_kernel_of_the_hub_is_loaded_and_gets_one_question_per_row(spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    for module in (base, modeling_utils):
        monkeypatch.setattr(module, "lazy_import_flash_attention", lambda name, **_: loaded.append(name))
    task = VideoQATask(backbone=BACKBONES["Qwen2.5-VL"](**SMALL, attn_implementation={"decoder": HUB}))
    assert set(loaded) == {HUB} and not task.model.backbone.packs_questions
    batch = tiny_batch(task, training=True)
    assert batch.sequences is not None and len(batch.sequences) == len(batch.records)
    task.loss(batch)
    assert spy.is_vision == {False}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flash_atention_2", "is unknown: known are eager.*did you mean flash_attention_2"),
        (HUB, "pip install kernels"),
        ("flash_attention_2", "pip install kernels"),
        ("flash_attention_3", "otherwise choose sdpa"),
        ({"vision": "no"}, "no is unknown"),
    ],
)
def test_backends_that_are_unknown_or_not_installed_are_one_line(name: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        BACKBONES["Qwen2.5-VL"](**SMALL, attn_implementation=name)
    assert "--model.backbone.attn_implementation" in str(error.value)


@pytest.mark.parametrize("encoding", [None, "PRoPE, ExtraChannels"])
@pytest.mark.parametrize("family", BACKBONES)
def test_attention_gets_no_position_ids(family: str, encoding: str | None, spy: Spy) -> None:
    """With them flash attention would wait for the device in each layer, and take mRoPE's for packed sequences.

    See `_is_packed_sequence` of transformers.
    """
    task = tiny_model("plain", family=family, camera_encoding=encoding).train()
    task.model.backbone.decoder.config._attn_implementation = "seen"
    batch = one_per_row(task, tiny_scene("a", family=family))
    task.loss(batch)
    assert spy.positions and all(each is None for each in spy.positions)
    assert batch.sequences is not None
    position_ids = batch.sequences.position_ids
    assert position_ids is not None and _is_packed_sequence(position_ids[0, :1], 1)  # the control


def test_names_come_from_the_command_line_alone_or_by_part() -> None:
    def loader(*words: str) -> Any:
        parser = run_parser("fit", None, ("seed_everything", "data", *OF_RUNS))
        parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
        settings = parse(parser, ["--config", "qwen25_vl.yaml", "--config", "scale_tiny.yaml", *words])
        return settings.model.init_args.backbone.init_args.attn_implementation

    option = "--model.backbone.attn_implementation"
    assert loader(option, HUB) == HUB
    assert loader(f"{option}={{decoder: {HUB}, vision: sdpa}}") == {"decoder": HUB, "vision": "sdpa"}
    assert loader(f"{option}.vision", "eager") == {"vision": "eager"}
