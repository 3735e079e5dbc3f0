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
from zoo.encodings import EncodedCameras, Fraction, Placement, PRoPE, TSection
from zoo.positions import NoTime, Seconds, grid_step_index, mrope_position_ids

PAD, START, END, VIDEO = 0, 1, 2, 3
HEAD_DIM, MROPE_SECTION = 16, [2, 3, 3]
TOKENS = {"image_token_id": 4, "video_token_id": VIDEO, "vision_start_token_id": START}
MOVES = 1e-3  # how far other cameras have to move the logits, at least
PLACEMENTS = [Fraction(), TSection()]


def tiny_model(implementation: str = "sdpa", kv_heads: int = 2) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 64,
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
            "out_hidden_size": 64,
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
        grids = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}
        layout = (self.input_ids, self.attention_mask)
        self.position_ids, self.deltas = mrope_position_ids(*layout, **grids, **TOKENS, time_index=time)
        self.index = grid_step_index(*layout, **grids, **TOKENS)
        self.embeddings = torch.randn(*self.input_ids.shape, 64, generator=generator)
        Q, R = torch.linalg.qr(torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        self.poses = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
        self.poses[..., :3, :3] = Q * torch.linalg.det(Q)[..., None, None]
        self.poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        self.K = torch.diag(torch.tensor([0.8, 1.1, 1.0], dtype=torch.float64)).repeat(2, 3, 1, 1)

    def encoded(self, placement: Placement | None = None, identity: bool = False) -> EncodedCameras:
        poses, K = (self.poses, self.K)
        if identity:
            poses, K = torch.eye(4).expand_as(poses), torch.eye(3).expand_as(K)
        return PRoPE(placement).encode(Cameras(poses, K, self.index), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "inputs_embeds": self.embeddings.to(next(model.parameters()).dtype),
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


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
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_without_cameras_it_is_stock(implementation: str, placement: Placement, dtype: torch.dtype) -> None:
    model, example = tiny_model(implementation).to(dtype), Example()
    stock = logits(model, example)
    names = list(model.state_dict())
    install_camera_attention(model.model.language_model)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model, example), stock)
    assert torch.equal(logits(model, example, camera_encoding=None), stock)
    assert torch.equal(logits(model, example, camera_encoding=example.encoded(placement, True)), stock)
    moved = logits(model, example, camera_encoding=example.encoded(placement))
    assert (moved - stock).abs().max() > MOVES


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
@torch.no_grad()
def test_grouped_queries(kv_heads: int) -> None:
    model, example = tiny_model(kv_heads=kv_heads), Example()
    install_camera_attention(model)
    stock = logits(model, example)
    assert torch.equal(logits(model, example, camera_encoding=example.encoded(identity=True)), stock)
    assert (logits(model, example, camera_encoding=example.encoded()) - stock).abs().max() > MOVES


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


@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_padding_sides_agree(placement: Placement) -> None:
    model = tiny_model()
    install_camera_attention(model)
    left, right = Example("left", NoTime()), Example("right", NoTime())
    count = int(right.attention_mask[1].sum())
    right.embeddings[1, :count] = left.embeddings[1, -count:]
    a = logits(model, left, camera_encoding=left.encoded(placement))
    b = logits(model, right, camera_encoding=right.encoded(placement))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_text_only_batches_are_stock() -> None:
    model, example = tiny_model(), Example()
    example.index = torch.full_like(example.index, -1)
    stock = logits(model, example)
    install_camera_attention(model)
    assert torch.equal(logits(model, example, camera_encoding=example.encoded()), stock)


# ---- the KV cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_decoding_equals_the_whole_forward(placement: Placement, implementation: str) -> None:
    """The encoding is needed once: keys and values are cached encoded, text after it needs nothing."""
    model = tiny_model(implementation)
    install_camera_attention(model)
    example = Example("left", NoTime() if isinstance(placement, TSection) else Seconds())
    whole = model(**example.inputs(model), camera_encoding=example.encoded(placement)).logits

    split = example.input_ids.shape[1] - 2  # what follows is text in both samples
    inputs = example.inputs(model)
    cache = DynamicCache(config=model.config.text_config)
    index, example.index = example.index, example.index[:, :split]
    steps = [
        model(
            inputs_embeds=inputs["inputs_embeds"][:, :split],
            attention_mask=inputs["attention_mask"][:, :split],
            position_ids=inputs["position_ids"][..., :split],
            cache=cache,
            camera_encoding=example.encoded(placement),
        ).logits
    ]
    assert (index[:, split:] == -1).all()
    for at in range(split, whole.shape[1]):
        steps.append(
            model(
                inputs_embeds=inputs["inputs_embeds"][:, at : at + 1],
                attention_mask=inputs["attention_mask"][:, : at + 1],
                position_ids=inputs["position_ids"][..., at : at + 1],
                cache=cache,
            ).logits
        )
    real = example.attention_mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real], rtol=0, atol=1e-5)
    stock = model(**inputs).logits
    assert (whole - stock)[:, split:].abs().max() > MOVES


@torch.no_grad()
def test_an_encoding_of_other_tokens_is_an_error() -> None:
    model, example = tiny_model(), Example()
    install_camera_attention(model)
    example.index = example.index[:, :-1]
    with pytest.raises(ValueError, match="camera encoding is of 18 tokens, not 19"):
        logits(model, example, camera_encoding=example.encoded())


# ---- training ---------------------------------------------------------------------------------------------


def gradients(model: nn.Module, example: Example, other: Example | None = None) -> dict[str, Tensor]:
    """Of a loss of all logits; between forward and backward, another forward with other cameras may run."""
    model.zero_grad()
    loss = logits(model, example, camera_encoding=example.encoded()).float().square().mean()
    if other is not None:
        logits(model, other, camera_encoding=other.encoded())
    loss.backward()
    named = model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_equal_gradients(use_reentrant: bool) -> None:
    model, example, other = tiny_model().train(), Example(), Example(seed=1)
    install_camera_attention(model)
    for each in (example, other):  # a reentrant checkpoint needs an input with a gradient
        each.embeddings.requires_grad_()
    plain = gradients(model, example)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-7)

    with torch.no_grad():
        stock = logits(model, example)
    moved = logits(model, example, camera_encoding=example.encoded())
    assert (moved - stock).abs().max() > MOVES
    example.poses[:] = torch.eye(4, dtype=torch.float64)  # the control: the gradients know the cameras
    without = gradients(model, example)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert (without[name] - plain[name]).abs().max() > 1e-4


def test_lora() -> None:
    example = Example()
    model = tiny_model()
    install_camera_attention(model)
    expected = logits(model, example, camera_encoding=example.encoded())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    attentions = [m for m in adapted.modules() if isinstance(m, CameraAttention)]
    assert len(attentions) == 3
    torch.testing.assert_close(logits(adapted, example, camera_encoding=example.encoded()), expected)
    assert (logits(adapted, example) - expected).abs().max() > MOVES
    found = gradients(adapted.train(), example)
    assert found and all("lora" in name for name in found)


@torch.no_grad()
def test_bfloat16_keeps_most_of_the_camera() -> None:
    """Not much worse than the stock decoder's own rounding."""
    example = Example()
    errors = []
    for encoded in (None, example.encoded()):
        model = tiny_model()
        install_camera_attention(model)
        exact = logits(model, example, camera_encoding=encoded)
        rounded = logits(model.bfloat16(), example, camera_encoding=encoded).float()
        errors.append(float((rounded - exact).square().mean().sqrt()))
    assert errors[1] < 1.5 * errors[0]


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
