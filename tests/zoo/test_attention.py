"""The camera seam in a tiny random decoder: exact where it must be, never silently off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zoo.attention import CameraAttention, install_camera_attention
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, EncodedCameras, PRoPE
from zoo.encodings.table import COMBINATIONS
from zoo.positions import grid_step_index, mrope_position_ids, view_places
from zoo.time_index import NoTime

PAD, START, END, VIDEO = 0, 1, 2, 3
HEAD_DIM, MROPE_SECTION, WIDTH = 32, [4, 4, 8], 128
TOKENS = {"image_token_id": 4, "video_token_id": VIDEO, "vision_start_token_id": START}
MOVES = 1e-3  # how far other cameras have to move the logits, at least
SHAPE: dict[str, Any] = {"head_dim": HEAD_DIM, "mrope_section": MROPE_SECTION}
GRIDS = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}
# a pose index is position ids, and stock attention
NAMES = [name for name in COMBINATIONS if not name.startswith("PoseIndex")]
SOME = ["PRoPE, Fraction", "PRoPE, TSection", "PRoPE, Append", "PoseALiBi", "Stack(GTA Append, PRoPE TSection)"]


def tiny_model(implementation: str = "sdpa", kv_heads: int = 2) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE_SECTION},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": PAD,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
        image_token_id=4,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():  # the usual 0.02 makes attention uniform at this width
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


class Example:
    """Two samples of one video each, the second one shorter and padded; with random visual tokens."""

    def __init__(self, side: str = "left", time: Any = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = [[9, 8, START, *[VIDEO] * 12, END, 7, 6, 5], [9, START, *[VIDEO] * 8, END, 5, 6]]
        pads = [[PAD] * (len(rows[0]) - len(row)) for row in rows]
        self.input_ids = torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])
        self.attention_mask = (self.input_ids != PAD).long()
        layout = (self.input_ids, self.attention_mask)
        self.position_ids, self.deltas = mrope_position_ids(*layout, **GRIDS, **TOKENS, time_index=time)
        self.index = grid_step_index(*layout, **GRIDS, **TOKENS)
        self.places = view_places(*layout, **GRIDS, **TOKENS)
        self.embeddings = torch.randn(*self.input_ids.shape, WIDTH, generator=generator)
        Q, R = torch.linalg.qr(torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        self.poses = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
        self.poses[..., :3, :3] = Q * torch.linalg.det(Q)[..., None, None]
        self.poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        self.K = torch.diag(torch.tensor([0.8, 1.1, 1.0], dtype=torch.float64)).repeat(2, 3, 1, 1)

    def cameras(self) -> Cameras:
        # what a token shows goes by its place and its view, on whichever side the padding is
        points = torch.cat((self.places, self.index[..., None] + 1.0), -1) / 3
        return Cameras(self.poses, self.K, self.index).with_tokens(self.places, points)

    def encoded(self, encoding: CameraEncoding | None = None) -> EncodedCameras:
        return (encoding or PRoPE()).encode(self.cameras(), **SHAPE)

    def identities(self) -> Example:
        """The same with nothing but identity cameras."""
        self.poses, self.K = torch.eye(4).expand_as(self.poses), torch.eye(3).expand_as(self.K)
        return self

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "inputs_embeds": self.embeddings.to(next(model.parameters()).dtype),
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def install(model: nn.Module, name: str) -> CameraEncoding:
    """Puts an encoding of the table into a model; what it learns gets random numbers, as if it had been trained."""
    encoding = COMBINATIONS[name]()
    install_camera_attention(model.model.language_model, encoding)
    generator = torch.Generator().manual_seed(3)
    for parameter in encoding.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return encoding


def example_for(encoding: CameraEncoding, side: str = "left", seed: int = 0) -> Example:
    return Example(side, NoTime() if encoding.needs_constant_time else None, seed)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-exactness is a matter of one order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(model: nn.Module, example: Example, **more: Any) -> Tensor:
    """Of the real tokens."""
    return model(**example.inputs(model), **more).logits[example.attention_mask.bool()]


# ---- stock, bit for bit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cameras_matter_and_nothing_else_does(name: str, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    names = list(model.state_dict())
    encoding = install(model, name)
    assert list(model.state_dict()) == names
    example, stock_model = example_for(encoding), tiny_model().to(dtype)
    stock = logits(stock_model, example)
    moved = logits(model, example, camera_encoding=example.encoded(encoding))
    assert moved.isfinite().all() and (moved - stock).abs().max() > MOVES
    assert torch.equal(logits(model, example), stock) == encoding.symmetries.text_stock
    text = example_for(encoding)
    text.index = torch.full_like(text.index, -1)
    encoded = text.encoded(encoding)
    if encoding.symmetries.text_stock and encoded.decoding() is None:
        assert torch.equal(logits(model, text, camera_encoding=encoded), stock)
    elif encoding.symmetries.text_stock:  # more channels: another order of sums
        atol = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(logits(model, text, camera_encoding=encoded), stock, rtol=0, atol=atol)
    encoded = example.identities().encoded(encoding)
    if encoding.symmetries.identity_stock:
        assert torch.equal(logits(model, example, camera_encoding=encoded), stock)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_backends_agree(name: str) -> None:
    results = []
    for implementation in ("sdpa", "eager"):
        model = tiny_model(implementation)
        encoding = install(model, name)
        example = example_for(encoding)
        results.append(logits(model, example, camera_encoding=example.encoded(encoding)))
    torch.testing.assert_close(*results, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["PRoPE, Append", "GTA, Append"])
@torch.no_grad()
def test_appended_channels_start_at_the_stock_model(name: str) -> None:
    model, encoding = tiny_model(), COMBINATIONS[name]()
    install_camera_attention(model.model.language_model, encoding)
    example = example_for(encoding)
    encoded = logits(model, example, camera_encoding=example.encoded(encoding))
    torch.testing.assert_close(encoded, logits(model, example), rtol=0, atol=1e-5)


@torch.no_grad()
def test_stock_attention_would_be_silently_off() -> None:
    """Why it has to be installed: without it the encoding is swallowed without a word."""
    model, example = tiny_model(), Example()
    ignored = logits(model, example, camera_encoding=example.encoded())
    assert torch.equal(ignored, logits(model, example))
    install_camera_attention(model)
    assert not torch.equal(ignored, logits(model, example, camera_encoding=example.encoded()))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_text_before_the_first_view_keeps_its_bits(side: str) -> None:
    model, example = tiny_model(), Example(side)
    install_camera_attention(model)
    stock, moved = (
        model(**example.inputs(model), camera_encoding=encoded).logits for encoded in (None, example.encoded())
    )
    real = example.attention_mask.bool()
    seen = (example.index >= 0).cumsum(1) > 0
    assert torch.equal(stock[real & ~seen], moved[real & ~seen])
    assert ((stock - moved)[real & seen].abs().amax(-1) > MOVES).all()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_grouped_queries(name: str, kv_heads: int) -> None:
    model = tiny_model(kv_heads=kv_heads)
    encoding = install(model, name)
    example = example_for(encoding)
    stock = logits(model, example)
    assert (logits(model, example, camera_encoding=example.encoded(encoding)) - stock).abs().max() > MOVES


@torch.no_grad()
def test_any_attention_interface_gets_plain_arguments() -> None:
    """Flash attention and others get the stock scale, and no argument that they don't know."""
    seen: list[dict[str, Any]] = []

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model, example = tiny_model(), Example()
    install_camera_attention(model)
    inputs = example.inputs(model)
    del inputs["attention_mask"]
    expected = model(**inputs, camera_encoding=example.encoded()).logits
    model.model.language_model.config._attn_implementation = "spy"
    model(**inputs)
    assert torch.equal(model(**inputs, camera_encoding=example.encoded()).logits, expected)
    assert len(seen) == 6 and all(call == seen[0] for call in seen)
    assert seen[0]["scaling"] == HEAD_DIM**-0.5


# ---- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_sides_agree(name: str) -> None:
    model = tiny_model()
    encoding = install(model, name)
    left, right = example_for(encoding, "left"), example_for(encoding, "right")
    count = int(right.attention_mask[1].sum())
    right.embeddings[1, :count] = left.embeddings[1, -count:]
    a, b = (logits(model, each, camera_encoding=each.encoded(encoding)) for each in (left, right))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_static_single_and_missing_cameras_stay_finite(name: str) -> None:
    model = tiny_model()
    encoding = install(model, name)
    static, single, missing = (example_for(encoding) for _ in range(3))
    static.poses[:] = static.poses[:, :1].clone()
    single.poses, single.K = single.poses[:, :1], single.K[:, :1]
    single.index = single.index.clamp(max=0)
    missing.index = torch.where(missing.index == 1, -1, missing.index)
    missing.index[1] = -1
    for example in (static, single, missing):
        assert logits(model, example, camera_encoding=example.encoded(encoding)).isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if COMBINATIONS[name]().symmetries.canonical])
@torch.no_grad()
def test_an_offset_of_100_m_is_no_matter(name: str) -> None:
    model = tiny_model()
    encoding = install(model, name)
    example = example_for(encoding)
    cameras = example.cameras()
    offset = torch.eye(4, dtype=torch.float64)
    offset[:3, 3] = torch.tensor([100.0, -70.0, 40.0])
    assert cameras.points is not None
    far = cameras.with_poses(cameras.world_to_camera @ offset).with_tokens(points=cameras.points - offset[:3, 3])
    a, b = (logits(model, example, camera_encoding=encoding.encode(each, **SHAPE)) for each in (cameras, far))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---- the KV cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_decoding_equals_the_whole_forward(name: str) -> None:
    """The encoding is needed once: keys and values are cached encoded, text after it needs no camera."""
    model = tiny_model()
    encoding = install(model, name)
    example = example_for(encoding)
    whole = model(**example.inputs(model), camera_encoding=example.encoded(encoding)).logits
    stock = model(**example.inputs(model)).logits

    split = example.input_ids.shape[1] - 2  # what follows is text in both samples
    inputs = example.inputs(model)
    cache = DynamicCache(config=model.config.text_config)
    assert (example.index[:, split:] == -1).all()
    example.index, example.places = example.index[:, :split], example.places[:, :split]
    encoded = example.encoded(encoding)
    steps = [
        model(
            inputs_embeds=inputs["inputs_embeds"][:, :split],
            attention_mask=inputs["attention_mask"][:, :split],
            position_ids=inputs["position_ids"][..., :split],
            cache=cache,
            camera_encoding=encoded,
        ).logits
    ]
    for at in range(split, whole.shape[1]):
        steps.append(
            model(
                inputs_embeds=inputs["inputs_embeds"][:, at : at + 1],
                attention_mask=inputs["attention_mask"][:, : at + 1],
                position_ids=inputs["position_ids"][..., at : at + 1],
                cache=cache,
                camera_encoding=encoded.decoding(),
            ).logits
        )
    real = example.attention_mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real], rtol=0, atol=2e-5)
    assert (whole - stock)[:, split:].abs().max() > MOVES


@torch.no_grad()
def test_an_encoding_of_other_tokens_is_an_error() -> None:
    model, example = tiny_model(), Example()
    install_camera_attention(model)
    example.index, example.places = example.index[:, :-1], example.places[:, :-1]
    with pytest.raises(ValueError, match="camera encoding is of 18 tokens, not 19"):
        logits(model, example, camera_encoding=example.encoded())


# ---- training ---------------------------------------------------------------------------------------------


def gradients(
    model: nn.Module, example: Example, other: Example | None = None, encoding: CameraEncoding | None = None
) -> dict[str, Tensor]:
    """Of a loss of all logits; between forward and backward, another forward with other cameras may run."""
    learned = {} if encoding is None else {f"encoding.{name}": p for name, p in encoding.named_parameters()}
    for parameter in (*model.parameters(), *learned.values()):
        parameter.grad = None
    given = () if encoding is None else (encoding,)
    loss = logits(model, example, camera_encoding=example.encoded(*given)).float().square().sum(-1).mean()
    if other is not None:
        logits(model, other, camera_encoding=other.encoded(*given))
    loss.backward()
    named = {**dict(model.named_parameters()), **learned}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_gives_equal_gradients(name: str) -> None:
    model = tiny_model().train()
    encoding = install(model, name)
    example, other = example_for(encoding), example_for(encoding, seed=1)
    plain = gradients(model, example, encoding=encoding)
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model, example, other, encoding)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    assert {f"encoding.{name}" for name, _ in encoding.named_parameters()} <= plain.keys()
    for each, gradient in plain.items():
        torch.testing.assert_close(checkpointed[each], gradient, rtol=0, atol=1e-7)
    moved = logits(model, example, camera_encoding=example.encoded(encoding))
    assert (moved - logits(model, example)).abs().max() > MOVES
    example.index = torch.full_like(example.index, -1)  # the control: the gradients know the cameras
    without = gradients(model, example, encoding=encoding)
    of = "model.language_model.layers.0.self_attn.v_proj.weight"
    assert (without[of] - plain[of]).abs().max() > MOVES


def test_reentrant_checkpointing_too() -> None:
    model, example, other = tiny_model().train(), Example(), Example(seed=1)
    install_camera_attention(model)
    for each in (example, other):  # a reentrant checkpoint needs an input with a gradient
        each.embeddings.requires_grad_()
    plain = gradients(model, example)
    model.activation_checkpointing_enable({"use_reentrant": True})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", SOME)
def test_lora(name: str) -> None:
    model = tiny_model()
    encoding = install(model, name)
    example = example_for(encoding)
    expected = logits(model, example, camera_encoding=example.encoded(encoding))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    attentions = [m for m in adapted.modules() if isinstance(m, CameraAttention)]
    assert len(attentions) == 3
    torch.testing.assert_close(logits(adapted, example, camera_encoding=example.encoded(encoding)), expected)
    assert (logits(adapted, example) - expected).abs().max() > MOVES
    found = gradients(adapted.train(), example, encoding=encoding)
    assert found and all("lora" in each or each.startswith("encoding.") for each in found)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bfloat16_rounds_little_more_than_stock(name: str) -> None:
    """At unit scale: over four samples of cameras, at most 1.2 times the stock decoder's own error."""
    errors = []
    for on in (False, True):
        squares = []
        for seed in range(4):
            model = tiny_model()
            encoding = install(model, name)
            example = example_for(encoding, seed=seed)
            encoded = example.encoded(encoding) if on else None
            exact = logits(model, example, camera_encoding=encoded)
            rounded = logits(model.bfloat16(), example, camera_encoding=encoded).float()
            squares.append((rounded - exact).square().mean())
        errors.append(float(torch.stack(squares).mean().sqrt()))
    assert errors[1] < 1.2 * errors[0]


# ---- installation -----------------------------------------------------------------------------------------


def test_nothing_to_install_on() -> None:
    with pytest.raises(ValueError, match="Linear has no Qwen2.5-VL decoder attention"):
        install_camera_attention(nn.Linear(1, 1))


def test_installing_twice_is_installing_once() -> None:
    model = tiny_model()
    for _ in range(2):
        install_camera_attention(model)
    layers = model.model.language_model.layers
    assert [type(layer.self_attn) for layer in layers] == [CameraAttention] * 3
