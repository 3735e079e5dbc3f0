"""The cost of camera encodings in attention: forward, forward and backward, and a decode step.

The first two tables measure attention alone, without the layers' projections and RoPE: q, k and v are given and
encoded, plain SDPA runs, and its output is encoded. They exclude what `encode` computes once for all layers.
Interleaved in the same run are SDPA alone, the published layout of PRoPE (arXiv 2507.10496) by `prope_attention`, and
the same layout as stated in the paper, with einsum over groups of four channels and RoPE by concatenation. RayRoPE and
URoPE attend view by view, here to all views, as in the view mixer.

The other tables measure a whole decoder with complete layers: a pass over a prompt with the same number of visual
tokens, including `encode`; the same with gradients; and a step after it. They compare the original transformers decoder
with `CameraAttention`, without an encoding and with each kind of cache.

On a CPU, most of the remaining cost is new memory, which the C library returns to the system and requests again. Set
MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=2000000000 in the environment to keep it.

    python -m timings.attention [--views 16] [--tokens 64] [--heads 16] [--key-heads 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from timings.encoded_decoder import IMAGE, TEXT_BETWEEN, MRoPE, cameras_of, encoder_in, text_model
from timings.measure import interleaved
from timings.tables import markdown
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.decoder import replace_classes
from zoo.cameras import normalize_intrinsics
from zoo.encodings import EncodedCameras, prope_attention
from zoo.encodings.view_mixers import ROPE_BASE

DECODED = 16  # steps per measurement, each one token longer
ENCODINGS = (  # encodings in the table; the cost of others is similar to one of these
    "PRoPE, TemporalSection",
    f"PRoPE, TemporalSection{TEXT_BETWEEN}",
    "PRoPE, TemporalSection, qk",
    "PRoPE, ChannelRange",
    "PRoPE, LowFrequencies",
    "PRoPE, ExtraChannels",
    "GTA, TemporalSection, learned scale",
    "CaPE, TemporalSection",
    "RayEncoding, TemporalSection",
    "PoseALiBi",
    "ValueRoPE",
    "PointRoPE",
    "RayRoPE",
    "URoPE",
    "HeadSubset(PRoPE, TemporalSection)",
    "Compose(PRoPE TemporalSection, PoseALiBi)",
)
NO_ENCODING = "hooks without an encoding"
IN_DECODER = ("PRoPE, TemporalSection", "PRoPE, ExtraChannels", "PoseALiBi", "RayRoPE", "URoPE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="tokens per view, a square number")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, help="heads of keys and values, a divisor of --heads (default: equal)")
    parser.add_argument("--head-dim", type=int, choices=MRoPE, default=128)
    parser.add_argument("--layers", type=int, default=4, help="layers of the timed decoder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if round(arguments.tokens**0.5) ** 2 != arguments.tokens:
        parser.error(f"--tokens: {arguments.tokens} tokens a view are no square")
    arguments.key_heads = arguments.key_heads or arguments.heads
    if arguments.heads % arguments.key_heads:
        parser.error(f"--key-heads: {arguments.key_heads} is no divisor of {arguments.heads} heads")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    heads = f"{arguments.heads} heads ({arguments.key_heads} of keys)"
    size = f"{arguments.views} views x {arguments.tokens} tokens x {heads} x {arguments.head_dim}"
    print(f"{size}, {arguments.dtype}, {where}, torch {torch.__version__}, {arguments.repeats} repeats\n")
    table("attention, forward", attentions(arguments, backward=False), "SDPA alone", arguments)
    table("attention, forward and backward", attentions(arguments, backward=True), "SDPA alone", arguments)
    prompts, learning, steps = decoders(arguments)
    table(f"a decoder of {arguments.layers} layers, the prompt", prompts, "stock", arguments)
    table(f"a decoder of {arguments.layers} layers, the prompt with gradients", learning, "stock", arguments)
    table(f"a decoder of {arguments.layers} layers, a step", steps, "stock", arguments, divided_by=DECODED)


def table(
    title: str, work: dict[str, Callable[[], object]], baseline: str, arguments: argparse.Namespace, divided_by: int = 1
) -> None:
    """Print medians, their spread, and the median of the ratios to the baseline of the same round."""
    seconds = interleaved(work, arguments.repeats, arguments.device)
    rows = []
    for name, values in seconds.items():
        found = {"ms, median": statistics.median(values), "from": min(values), "to": max(values)}
        ms = {column: f"{1e3 * value / divided_by:.3g}" for column, value in found.items()}
        ratio = statistics.median(a / b for a, b in zip(values, seconds[baseline], strict=True))
        rows.append({title: name, **ms, "ratio": f"{ratio:.3f}"})
    print(f"{markdown(rows)}\n", flush=True)


# ---- attention --------------------------------------------------------------------------------------------


def attentions(arguments: argparse.Namespace, backward: bool) -> dict[str, Callable[[], object]]:
    length, dtype = arguments.views * arguments.tokens, getattr(torch, arguments.dtype)
    counts = (arguments.heads, arguments.key_heads, arguments.key_heads)
    options = {"device": arguments.device, "dtype": dtype, "requires_grad": backward}
    q, k, v = (torch.randn(1, length, count, arguments.head_dim, **options) for count in counts)
    hidden = torch.randn(1, length, arguments.heads * arguments.head_dim, device=arguments.device, dtype=dtype)
    model = text_model(arguments)
    ids = torch.arange(length, device=arguments.device).expand(3, 1, -1)
    rope = model.rotary_emb(hidden, ids)
    side = round(arguments.tokens**0.5)
    layout = {"patches_x": side, "patches_y": side, "image_width": IMAGE, "image_height": IMAGE}
    poses, K = cameras_of(arguments)
    poses, heads_first = poses.to(torch.float32), [x.transpose(1, 2) for x in (q, k, v)]
    everything = torch.ones(1, 1, length, length, device=arguments.device, dtype=torch.bool)

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        output = F.scaled_dot_product_attention(q, k, v, mask, scale=arguments.head_dim**-0.5, enable_gqa=True)
        return output.transpose(1, 2), None

    def encoded(name: str) -> Callable[[], Tensor]:
        whole = encoder_in(model, name, arguments, is_causal=False)()

        def attend() -> Tensor:
            acting = whole.at_layer(0, hidden, rope) or EncodedCameras()
            keys = acting.after_rope(*acting.before_rope(q, k))
            inputs = [x.transpose(1, 2) for x in (*keys, acting.transform_values(v))]
            output, _ = acting.attend(attention, *inputs, everything if acting.attends_per_view else None)
            return acting.transform_outputs(output)

        return attend

    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def repeated() -> list[Tensor]:
        return [x.repeat_interleave(arguments.heads // x.shape[1], 1) for x in heads_first]

    copied = torch.Tensor.clone  # the least cost of an encoding that does not change its inputs in place
    work: dict[str, Callable[[], Tensor]] = {
        "SDPA alone": lambda: grouped(*heads_first),
        "SDPA, and a copy of q, k, v and o": lambda: grouped(*map(copied, heads_first)).clone(),
        "published layout, einsum": lambda: published(*repeated(), poses, K, side),
        "published layout, `prope_attention`": lambda: prope_attention(*repeated(), poses, K, **layout),
    }
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    same = [work[name]() for name in work if name.startswith("published")]
    torch.testing.assert_close(*same, rtol=tolerance, atol=tolerance)
    work |= {name: encoded(name) for name in ENCODINGS}

    def run(attend: Callable[[], Tensor]) -> None:
        with torch.set_grad_enabled(backward):
            output = attend()
        if backward:
            torch.autograd.grad(output.sum(), (q, k, v))

    return {name: lambda attend=attend: run(attend) for name, attend in work.items()}


def published(q: Tensor, k: Tensor, v: Tensor, V: Tensor, K_px: Tensor, side: int) -> Tensor:
    """Compute the complete layout of arXiv 2507.10496, equation by equation, with plain operators."""
    half, quarter = q.shape[-1] // 2, q.shape[-1] // 4
    P = torch.eye(4, device=q.device).repeat(*V.shape[:2], 1, 1)
    P[..., :3, :3] = normalize_intrinsics(K_px, IMAGE, IMAGE)
    P = P @ V
    exponent = torch.arange(quarter // 2, device=q.device) / (quarter // 2)
    place = torch.arange(side, device=q.device)
    x, y = place.repeat(side), place.repeat_interleave(side)
    angles = [(at[:, None] * ROPE_BASE**-exponent).repeat(V.shape[1], 1) for at in (x, y)]

    def apply(x: Tensor, matrices: Tensor, sign: int) -> Tensor:
        groups = x[..., :half].unflatten(2, (V.shape[1], -1)).unflatten(-1, (-1, 4))
        projected = torch.einsum("bcij,bhctgj->bhctgi", matrices.to(x), groups).flatten(-2).flatten(2, 3)
        rotated = [rope(x[..., half:][..., :quarter], sign * angles[0]), rope(x[..., -quarter:], sign * angles[1])]
        return torch.cat((projected, *rotated), -1)

    def rope(x: Tensor, angle: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)

    inverse = torch.linalg.inv(P)
    output = F.scaled_dot_product_attention(apply(q, P.mT, 1), apply(k, inverse, 1), apply(v, inverse, 1))
    return apply(output, P, -1)


# ---- in the decoder ---------------------------------------------------------------------------------------


def decoders(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], object]], ...]:
    """Return calls for a pass over a prompt, the same with gradients, and steps after it, which crop the cache."""
    length, dtype = arguments.views * arguments.tokens, getattr(torch, arguments.dtype)
    prompt = torch.randn(1, length, arguments.heads * arguments.head_dim, device=arguments.device, dtype=dtype)
    prompts: dict[str, Callable[[], object]] = {}
    learning: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], object]] = {}
    for name in ("stock", NO_ENCODING, *IN_DECODER):
        model = text_model(arguments)
        if name == NO_ENCODING:
            replace_classes(model, Qwen25VLBackbone.hooked_classes)
        encode = encoder_in(model, name, arguments) if name in IN_DECODER else lambda: None
        cache = DynamicCache(config=model.config)
        encoded = encode()
        later = None if encoded is None else encoded.for_decode_step()

        def read(model=model, cache=None, encode=encode) -> None:
            with torch.no_grad():
                model(inputs_embeds=prompt, cache=cache, use_cache=cache is not None, camera_encoding=encode())

        def learn(model=model, encode=encode) -> None:
            output = model(inputs_embeds=prompt, use_cache=False, camera_encoding=encode()).last_hidden_state
            torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)  # no embeddings

        def decode(model=model, cache=cache, later=later) -> None:
            with torch.no_grad():
                for _ in range(DECODED):
                    model(inputs_embeds=prompt[:, :1], cache=cache, camera_encoding=later)
            cache.crop(-DECODED)

        read(cache=cache)
        prompts[name], learning[name], steps[name] = read, learn, decode
    return prompts, learning, steps


if __name__ == "__main__":
    main()
