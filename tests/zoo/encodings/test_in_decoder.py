"""Biases, rotary values, rotary points and rays in a tiny random decoder: backends, cache, padding, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.zoo.test_attention import HEAD_DIM, MOVES, MROPE_SECTION, PAD, TOKENS, Example, gradients, logits, tiny_model
from zoo.attention import install_camera_attention
from zoo.cameras import Cameras
from zoo.encodings import (
    GTA,
    CameraEncoding,
    EncodedCameras,
    PoseALiBi,
    PRoPE,
    RayEncoding,
    Stack,
    TSection,
    VORoPE,
    XYZRoPE,
)
from zoo.generation import CameraQwen25VL
from zoo.positions import view_places
from zoo.time_index import NoTime

GRIDS = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}
ENCODINGS: dict[str, Callable[[], CameraEncoding]] = {
    "alibi": lambda: PoseALiBi(),
    "alibi learned": lambda: PoseALiBi("log", slopes="learned"),
    "vorope": lambda: VORoPE(),
    "xyzrope": lambda: XYZRoPE("qkvo"),
    "rays": lambda: RayEncoding(),
    "vorope, gta": lambda: Stack([VORoPE(), GTA(TSection())]),
    "alibi, prope": lambda: Stack([PoseALiBi("sum"), PRoPE(TSection())]),
    "prope, xyzrope, alibi": lambda: Stack([PRoPE(), XYZRoPE(), PoseALiBi()]),
}
pytestmark = pytest.mark.parametrize("name", ENCODINGS)


class Clip(Example):
    """An example whose encoding is of this file's, and whose tokens have places and points."""

    def __init__(self, name: str, model: nn.Module, side: str = "left", seed: int = 0) -> None:
        super().__init__(side, NoTime(), seed)
        self.encoding = ENCODINGS[name]()
        install_camera_attention(model, None)
        self.encoding.attach(model.model.language_model)
        for parameter in self.encoding.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        self.places = view_places(self.input_ids, self.attention_mask, **GRIDS, **TOKENS)
        points = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        number = (self.index >= 0).cumsum(1).sub(1).clamp(0, 11)
        self.points = points[torch.arange(2)[:, None], number]

    def cameras(self) -> Cameras:
        places, points = (x[:, : self.index.shape[1]] for x in (self.places, self.points))
        return Cameras(self.poses, self.K, self.index).with_tokens(places, points)

    def encoded(self, *_: Any) -> EncodedCameras:
        return self.encoding.encode(self.cameras(), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_text_is_stock_and_cameras_matter(name: str, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    example = Clip(name, model)
    stock = logits(model, example)
    moved = logits(model, example, camera_encoding=example.encoded())
    assert moved.isfinite().all() and (moved - stock).abs().max() > MOVES
    before = (example.index >= 0).cumsum(1)[example.attention_mask.bool()] == 0
    torch.testing.assert_close(moved[before], stock[before], rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    example.index = torch.full_like(example.index, -1)
    assert torch.equal(logits(model, example, camera_encoding=example.encoded()), stock)


@torch.no_grad()
def test_backends_agree(name: str) -> None:
    results = []
    for implementation in ("sdpa", "eager"):
        model = tiny_model(implementation)
        example = Clip(name, model)
        results.append(logits(model, example, camera_encoding=example.encoded()))
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


@torch.no_grad()
def test_backends_get_heads_of_one_width_and_the_stock_scale(name: str) -> None:
    seen: list[tuple[Any, ...]] = []

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1], kwargs))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model = tiny_model()
    example = Clip(name, model)
    model.model.language_model.config._attn_implementation = "spy"
    inputs = {key: value for key, value in example.inputs(model).items() if key != "attention_mask"}
    model(**inputs, camera_encoding=example.encoded())
    assert len(seen) == 3
    for q, k, v, kwargs in seen:
        assert q == k == v and q % 8 == 0 and kwargs["scaling"] == HEAD_DIM**-0.5
        assert not {"position_bias", "camera_encoding"} & set(kwargs)
    assert seen[0][0] == HEAD_DIM + 8 * ("alibi" in name)


@torch.no_grad()
def test_padding_sides_agree(name: str) -> None:
    model = tiny_model()
    left, right = (Clip(name, model, side) for side in ("left", "right"))
    count = int(right.attention_mask[1].sum())
    right.embeddings[1, :count] = left.embeddings[1, -count:]
    a, b = (logits(model, each, camera_encoding=each.encoded()) for each in (left, right))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_sample_does_not_see_its_batch(name: str) -> None:
    """Other samples may have more cameras."""
    model = tiny_model()
    example = Clip(name, model)
    both = model(**example.inputs(model), camera_encoding=example.encoded()).logits[1]
    count = int(example.attention_mask[1].sum())
    inputs = {"inputs_embeds": example.embeddings[1:, -count:], "position_ids": example.position_ids[:, 1:, -count:]}
    cameras = example.cameras()[1:].with_index(example.index[1:, -count:])
    assert cameras.places is not None and cameras.points is not None
    cameras = cameras.with_tokens(cameras.places[:, -count:], cameras.points[:, -count:])
    encoded = example.encoding.encode(cameras, head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
    alone = model(**inputs, camera_encoding=encoded).logits[0]
    torch.testing.assert_close(alone, both[-count:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_decoding_equals_the_whole_forward(name: str, implementation: str) -> None:
    model = tiny_model(implementation)
    example = Clip(name, model)
    inputs = example.inputs(model)
    whole = model(**inputs, camera_encoding=example.encoded()).logits
    split = example.input_ids.shape[1] - 2  # what follows is text in both samples
    cache = DynamicCache(config=model.config.text_config)
    example.index = example.index[:, :split]
    encoded: EncodedCameras | None = example.encoded()
    later = encoded.decoding() if encoded is not None else None
    steps = []
    for start, stop in ((0, split), (split, split + 1), (split + 1, split + 2)):
        steps.append(
            model(
                inputs_embeds=inputs["inputs_embeds"][:, start:stop],
                attention_mask=inputs["attention_mask"][:, :stop],
                position_ids=inputs["position_ids"][..., start:stop],
                cache=cache,
                camera_encoding=encoded,
            ).logits
        )
        encoded = later
    real = example.attention_mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real], rtol=0, atol=1e-5)
    assert (later is not None) == ("alibi" in name)


def prompt(example: Example) -> dict[str, Tensor]:
    """Any words in the place of visual tokens: the cameras make them visual."""
    words = torch.randint(5, 64, example.input_ids.shape, generator=torch.Generator().manual_seed(4))
    return {
        "input_ids": torch.where(example.index >= 0, words, example.input_ids),
        "attention_mask": example.attention_mask,
        "position_ids": example.position_ids,
    }


@torch.no_grad()
def test_generation_equals_forwards_of_the_whole(name: str) -> None:
    model = tiny_model()
    model.__class__ = CameraQwen25VL
    example = Clip(name, model)
    given, length = prompt(example), example.input_ids.shape[1]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
    found = model.generate(**given, **settings, camera_encoding=example.encoded())
    assert found.shape == (2, length + 4)
    for step in range(4):
        after = example.deltas + length + torch.arange(step)
        output = model(
            input_ids=found[:, : length + step],
            attention_mask=nn.functional.pad(example.attention_mask, (0, step), value=1),
            position_ids=torch.cat((example.position_ids, after.expand(3, 2, step)), -1),
            camera_encoding=example.encoding.encode(
                _longer(example.cameras(), step), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION
            ),
        ).logits[:, -1]
        assert torch.equal(output.argmax(-1), found[:, length + step])


@torch.no_grad()
def test_beams_of_a_batch_are_those_of_each_sample(name: str) -> None:
    model = tiny_model()
    model.__class__ = CameraQwen25VL
    example = Clip(name, model)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": PAD, "num_beams": 3}
    given = prompt(example)
    found = model.generate(**given, **settings, camera_encoding=example.encoded())
    for sample in range(2):
        own = {key: x[:, [sample]] if x.ndim == 3 else x[[sample]] for key, x in given.items()}
        encoded = example.encoding.encode(example.cameras()[[sample]], head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
        assert torch.equal(model.generate(**own, **settings, camera_encoding=encoded)[0], found[sample])


def _longer(cameras: Cameras, by: int) -> Cameras:
    """With so many tokens of text more."""
    pad = nn.functional.pad
    assert cameras.index is not None and cameras.places is not None and cameras.points is not None
    longer = cameras.with_index(pad(cameras.index, (0, by), value=-1))
    return longer.with_tokens(pad(cameras.places, (0, 0, 0, by)), pad(cameras.points, (0, 0, 0, by)))


def test_checkpointing_gives_equal_gradients(name: str) -> None:
    model = tiny_model().train()
    example, other = Clip(name, model), Clip(name, model, seed=1)
    other.encoding = example.encoding
    plain = gradients(model, example)
    own = [p.grad.clone() for p in example.encoding.parameters() if p.grad is not None]
    example.encoding.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=0, atol=1e-7)
    for parameter, gradient in zip(example.encoding.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-7)
        assert gradient.abs().max() > 1e-5
    name_of = "model.language_model.layers.0.self_attn.q_proj.weight"
    example.index = torch.full_like(example.index, -1)  # the control: the gradients know the cameras
    assert (gradients(model, example)[name_of] - plain[name_of]).abs().max() > 1e-4


def test_lora(name: str) -> None:
    model = tiny_model()
    example = Clip(name, model)
    expected = logits(model, example, camera_encoding=example.encoded())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    torch.testing.assert_close(logits(adapted, example, camera_encoding=example.encoded()), expected)
    assert (logits(adapted, example) - expected).abs().max() > MOVES


@torch.no_grad()
def test_bfloat16_is_not_much_worse_than_stock(name: str) -> None:
    errors = []
    for on in (False, True):
        squares = []
        for seed in range(8):
            model = tiny_model()
            example = Clip(name, model, seed=seed)
            given = example.encoded() if on else None
            exact = logits(model, example, camera_encoding=given)
            rounded = logits(model.bfloat16(), example, camera_encoding=given).float()
            squares.append((rounded - exact).square().mean())
        errors.append(float(torch.stack(squares).mean().sqrt()))
    assert errors[1] < 1.2 * errors[0]


@torch.no_grad()
def test_static_single_and_missing_cameras(name: str) -> None:
    model = tiny_model()
    example = Clip(name, model)
    for spoil in (lambda e: e.poses.copy_(torch.eye(4)), lambda e: e.poses.copy_(e.poses[:, :1].clone())):
        spoil(example)
        assert logits(model, example, camera_encoding=example.encoded()).isfinite().all()
    example = Clip(name, model)
    example.points[0, 5] = torch.nan
    example.index = torch.where(example.index == 1, -1, example.index)
    assert logits(model, example, camera_encoding=example.encoded()).isfinite().all()
    example.index = torch.where(example.index == 0, 0, -1)
    assert logits(model, example, camera_encoding=example.encoded()).isfinite().all()


@torch.no_grad()
def test_far_from_the_origin(name: str) -> None:
    """Poses in float32 with an offset of 100 m: what is lost is their own rounding."""
    model = tiny_model()
    example = Clip(name, model)
    near = logits(model, example, camera_encoding=example.encoded())
    offset = torch.eye(4, dtype=torch.float64)
    offset[:3, 3] = torch.tensor([100.0, -70.0, 40.0])
    example.poses, example.points = example.poses @ offset, example.points - offset[:3, 3]
    far = logits(model, example, camera_encoding=example.encoded())
    torch.testing.assert_close(far, near, rtol=0, atol=1e-5)
