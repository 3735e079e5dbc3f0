"""Attention view by view: keys and values are encoded anew for each view that attends to them (RayRoPE and URoPE)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from zoo.cameras import Cameras, Scale
from zoo.cameras.cameras import camera_runs
from zoo.cameras.poses import invert_se3
from zoo.encodings.base import (
    QK,
    Attention,
    CameraEncoding,
    DecoderLayout,
    EncodedCameras,
    HeadLayout,
    Rope,
    Symmetries,
)
from zoo.encodings.placements import ChannelRange, UnrotatedChannels
from zoo.errors import InputError, check_choice
from zoo.sequences.packing import ScenePacking
from zoo.values import Movable

# ---- Encodings whose keys and values depend on the attending view ----------------------------------------------------

Applied = Literal["qkvo", "qk"]
PairedChannels = ChannelRange | UnrotatedChannels | None  # contiguous channels, whose second half pairs with the first


class PerViewEncoding(CameraEncoding):
    """Base class of encodings whose keys and values depend on the view that attends to them.

    The KV cache holds original keys and values, so decoded text and all other tokens without a camera attend as in the
    original decoder. Text that a view attends to is not rotated. Only relative poses enter, so no reference view is
    needed.

    Args:
        apply_to: `qk` rotates queries and keys. `qkvo` also rotates values and outputs.
        channels: The rotated channels, whose second half pairs with the first. Channels that RoPE does not rotate keep
            the invariance to shifts exact. None takes RoPE's own pairs, with which the rotations commute, from the
            first one on, as many as fit.
        scale: Unit of translations and depths, see `CameraEncoding`.
    """

    def __init__(self, apply_to: Applied = "qkvo", channels: PairedChannels = None, scale: Scale = "none") -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("apply_to", apply_to, Applied)
        self.apply_to, self.channels = apply_to, channels

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        last = decoder.num_layers - 1
        if last and list(layers) == [last]:
            raise InputError(
                f"{type(self).__name__} changes what views read of each other, which from the last layer reaches no "
                "answer: let it act in an earlier layer of full attention too (tiny Qwen3.5: --model.backbone.layers 8)"
            )
        if self.channels is not None:
            self.channels.bind_to_decoder(decoder, layers)

    @property
    def attends_per_view(self) -> bool:
        return True

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            scale=self.scale != "none",
            shift=self.channels is None or self.channels.keeps_shift,
            intrinsics=False,
            identity_stock=False,
        )

    def pairs(self, head: HeadLayout, multiple: int) -> Channels:
        """Return the rotated pairs of channels. Their number is a multiple of `multiple`.

        Raises:
            InputError: The pairs do not fit heads of this size.
        """
        if self.channels is None:
            count, first, second = len(head.axes) // multiple * multiple, 0, len(head.axes)
        else:
            channels = self.channels.head_channels(head)
            count, first, second = len(channels) // 2, channels[0], channels[len(channels) // 2]
        if not count or count % multiple:
            raise InputError(
                f"{type(self).__name__} rotates multiples of {2 * multiple} channels, not {2 * count or head.dim}: set "
                "its channels to a ChannelRange of such a width, or give it fewer rays"
            )
        return Channels(first, second, count)

    def encode_canonical(
        self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool = True
    ) -> EncodedCameras:
        index = cameras.required("index")
        runs = camera_runs(index) if cameras.token_runs is None else cameras.token_runs
        if not runs.views:
            return EncodedCameras()
        used = cameras.used_mask()[..., None, None]  # unused cameras may hold any values
        poses, K = (
            x.where(used, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
            for x in (cameras.world_to_camera, cameras.K_normalized)
        )
        finite = Cameras.trusted(poses, K, index, runs)
        tokens = [getattr(cameras, name) for name in ("patch_centers", "points", "time", "patch_sizes")]
        return self.encode_views(finite.with_tokens(*tokens), head, dtype, is_causal)

    @abstractmethod
    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> PerViewAttention:
        """Compute the attention from canonical, finite cameras with `token_runs`, see `encode`."""

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        pairs = self.pairs(head, 1)
        channels = [start + i for start in (pairs.first, pairs.second) for i in range(pairs.count)]
        return set(product(self.apply_to, channels))


def token_intrinsics(cameras: Cameras) -> Float[Tensor, "B L 3 3"]:
    """Return the intrinsics of each token. Tokens without a camera get the first camera's."""
    index = cameras.required("index")
    return cameras.K_normalized[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]


# ---- Attention of all views of a batch in few calls ------------------------------------------------------------------

Queries = tuple[int, int, int]  # adjacent queries: row, start, stop
MAX_KEYS = 2**16  # keys of one call over all of its blocks, which bounds the memory of encoded keys
# a block may have this many times the keys of its call's first block, so that causal order still saves work
GROWTH = 1.5
CosSin = tuple[Tensor, Tensor]  # (blocks, heads or 1, tokens, pairs)


class PerViewAttention(EncodedCameras):
    """Base class of encoded cameras whose keys depend on the attending view. The KV cache keeps original keys.

    For each view, its queries are rotated by their positions in it, and keys and values by their positions as seen from
    it. The output is rotated back. Text attends as in the original decoder, and views attend to text without rotation.
    Views with the same number of tokens share a call, unless that wastes memory or the causal order.

    Args:
        cameras: Cameras with `token_runs`. All of them are finite, even unused ones.
        channels: The rotated pairs.
        transform_values: Rotate values and outputs as well.
        is_causal: Whether tokens attend only to earlier ones.
    """

    attends_per_view = True

    def __init__(self, cameras: Cameras, channels: Channels, transform_values: bool, is_causal: bool) -> None:
        self.index = cameras.required("index")
        super().__init__(self.index.shape[1])
        self.channels, self.rotates_values, self.is_causal = channels, transform_values, is_causal
        assert cameras.token_runs is not None
        num_rows, length = self.index.shape
        calls = attention_calls(cameras.token_runs.views, num_rows, length, is_causal)
        self.calls = [call.to(self.index.device, non_blocking=True) for call in calls]
        self.looks = {n: Look.of(call, cameras) for n, call in enumerate(self.calls) if call.is_view}
        order = torch.cat([(call.rows[:, None] * length + call.places).flatten() for call in calls]).argsort()
        self.order = order.to(self.index.device, non_blocking=True)
        self.masks: dict[tuple[int, int], Any] = {}  # block masks are slow to build and the same in all layers

    @abstractmethod
    def rotations(self, number: int) -> tuple[CosSin, CosSin]:
        """Return cosine and sine of a call's queries in their own views, and of its keys as seen from there.

        `number` is the number of the call. Values for tokens without a camera have no effect.
        """

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        """Compute the attention view by view, see the class.

        Raises:
            InputError: The cache holds keys of earlier passes: chunks of a prompt, or images in a later turn.
        """
        if k.shape[2] != q.shape[2]:
            raise InputError(
                f"{q.shape[2]} tokens with views meet {k.shape[2]} keys, and the KV cache knows neither camera nor "
                "depth of those before: with RayRoPE or URoPE read a prompt with all of its views in one pass"
            )
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        outputs = [self._attend(number, attention, q, k, v, mask) for number in range(len(self.calls))]
        ordered = torch.cat([each.flatten(0, 1) for each in outputs])[self.order]
        return ordered.unflatten(0, q.shape[:2]), None

    def _attend(
        self, number: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> Float[Tensor, "blocks T H D"]:
        call = self.calls[number]
        queries = call.of_queries(q).transpose(1, 2)
        keys, values = (call.of_keys(x).transpose(1, 2) for x in (k, v))
        own_mask = self._mask(number, mask)
        if not call.is_view:
            return attention(queries, keys, values, own_mask)[0]
        own, seen = self.rotations(number)
        own, seen = _visible(own, call.of_queries(self.index >= 0)), _visible(seen, self.looks[number].seen)
        queries, keys = self.channels.rotate(queries, *own), self.channels.rotate(keys, *seen)
        if not self.rotates_values:
            return attention(queries, keys, values, own_mask)[0]
        output = attention(queries, keys, self.channels.rotate(values, *seen), own_mask)[0].transpose(1, 2)
        return self.channels.rotate(output, own[0], -own[1]).transpose(1, 2)

    def _mask(self, number: int, mask: Any) -> Any:
        call = self.calls[number]
        if mask is None and (not self.is_causal or call.blocks[0][1] == call.blocks[-1][1] == 0):
            return None  # faster kernels exist for attention to all tokens and for causal attention of the first ones
        if mask is None or isinstance(mask, Tensor):
            return call.mask(mask)
        if (key := (id(mask), number)) not in self.masks:
            self.masks[key] = call.mask(mask)
        return self.masks[key]


class Call(Movable):
    """Blocks of queries that attend together. Each has one camera, or none has a camera.

    Args:
        blocks: Blocks with the same number of queries, ordered by their number of keys.
        is_view: Whether the queries have cameras.
        num_keys: Number of first keys of each row that the queries may attend to.

    Attributes:
        rows: The row of each block.
        places: The place of each query in its row.
    """

    def __init__(self, blocks: list[Queries], is_view: bool, num_keys: int) -> None:
        self.blocks, self.is_view, self.num_keys = blocks, is_view, num_keys
        bounds = torch.tensor(blocks)
        self.rows: Int[Tensor, " blocks"] = bounds[:, 0]
        self.places: Int[Tensor, "blocks T"] = bounds[:, 1:2] + torch.arange(blocks[0][2] - blocks[0][1])

    def of_keys(self, x: Tensor) -> Tensor:
        """Select the keys from a tensor (B, L, ...)."""
        return x[:, : self.num_keys].index_select(0, self.rows)

    def of_queries(self, x: Tensor) -> Tensor:
        """Select the queries from a tensor (B, L, ...)."""
        return x[self.rows[:, None], self.places]

    def mask(self, mask: Any) -> Any:
        """Return the part of a mask for this call, in the format of the given mask. None is causal attention."""
        if mask is None:
            keys = torch.arange(self.num_keys, device=self.rows.device)
            return (keys <= self.places[..., None])[:, None]
        if isinstance(mask, Tensor):
            rows = self.rows[:, None] if len(mask) > 1 else torch.zeros_like(self.rows[:, None])
            return mask[..., : self.num_keys][rows, :, self.places].transpose(1, 2)
        return select_blocks(mask, self.rows, self.places, self.num_keys)


def attention_calls(views: Sequence[slice], num_rows: int, length: int, is_causal: bool = True) -> list[Call]:
    """Divide all queries of a batch among calls of the attention.

    `views` are runs of tokens with one camera in the flattened batch.
    """
    # 1. Blocks: each view, and the tokens between views in each row.
    blocks: list[tuple[bool, Queries]] = []
    for row in range(num_rows):
        at = row * length
        end = at + length
        for view in [each for each in views if at <= each.start < end] + [slice(end, end)]:
            for is_view, start, stop in ((False, at, view.start), (True, view.start, view.stop)):
                if start < stop:
                    blocks.append((is_view, (row, start - row * length, stop - row * length)))
            at = view.stop
    # 2. Calls of blocks with the same number of queries.
    calls: list[Call] = []

    def kind(each: tuple[bool, Queries]) -> tuple[bool, int]:
        return each[0], each[1][2] - each[1][1]

    for (is_view, _), same in groupby(sorted(blocks, key=kind), key=kind):
        joined: list[Queries] = []
        num_keys = first = 0
        for _, block in sorted(same, key=lambda each: each[1][2]):
            own = block[2] if is_causal else length
            if joined and (own > GROWTH * first or own * (len(joined) + 1) > MAX_KEYS):
                calls.append(Call(joined, is_view, num_keys))
                joined = []
            first = first if joined else own
            num_keys = own
            joined.append(block)
        calls.append(Call(joined, is_view, num_keys))
    return calls


class Look(NamedTuple):
    """The cameras of a call: the attending views, and the keys as seen from them.

    Attributes:
        relative_pose: Pose from each key's camera to the attending view's camera.
        K_normalized: Intrinsics of the attending view.
        seen: True for keys with a camera, for views with a camera.
    """

    relative_pose: Float[Tensor, "blocks keys 4 4"]
    K_normalized: Float[Tensor, "blocks 3 3"]
    seen: Bool[Tensor, "blocks keys"]

    @classmethod
    def of(cls, call: Call, cameras: Cameras) -> Look:
        """Compute the relative poses of a call, in the dtype of the cameras.

        Translations are computed between camera centers. They are then exactly 0 for a camera that sees its own tokens.
        Otherwise rounding would determine a direction (`0_pj` of RayRoPE).
        """
        index = cameras.required("index")
        looking, keys = call.of_queries(index)[:, 0], call.of_keys(index)
        poses, K = (x.index_select(0, call.rows) for x in (cameras.world_to_camera, cameras.K_normalized))
        block = torch.arange(len(poses), device=index.device)
        view = looking.clamp(min=0)
        camera_to_world = invert_se3(poses)
        relative = poses[block, view][:, None] @ camera_to_world
        centers = camera_to_world[..., :3, 3]
        relative[..., :3, 3] = (centers - centers[block, view][:, None]) @ poses[block, view, :3, :3].mT
        seen = (keys >= 0) & (looking >= 0)[:, None]
        return cls(relative[block[:, None], keys.clamp(min=0)], K[block, view], seen)


@dataclass(frozen=True)
class Channels:
    """The channels of a head that form pairs (first + i, second + i), i < count."""

    first: int
    second: int
    count: int

    def rotate(self, x: Float[Tensor, "*batch L D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*batch L D"]:
        """Rotate the pairs by their negative angles, in float32 or better."""
        ends = (self.first, self.first + self.count, self.second, self.second + self.count)
        before, a, between, b, behind = x.tensor_split(ends, -1)
        rotated = (a * cos + b * sin).to(x.dtype), (b * cos - a * sin).to(x.dtype)
        return torch.cat((before, rotated[0], between, rotated[1], behind), -1)


def rotate_pairs(
    x: Float[Tensor, "*batch L D"], cos: Float[Tensor, "*#batch L F"], sin: Float[Tensor, "*#batch L F"]
) -> Float[Tensor, "*batch L D"]:
    """Rotate the pairs (c, c + D/2) by their negative angles. With a negative sine, rotate back."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)


def _visible(rotation: CosSin, mask: Bool[Tensor, "blocks tokens"]) -> CosSin:
    """Set the rotation of tokens outside the mask to the identity."""
    where = mask[:, None, :, None]
    return rotation[0].where(where, 1.0), rotation[1].where(where, 0.0)


# ---- An encoding of padded rows in the attention of packed sequences -------------------------------------------------


class PackedEncoding(EncodedCameras):
    """The hooks of an encoding of padded rows in the attention of packed sequences.

    Args:
        encoding: Encoding of the rows.
        packing: Packing of the same rows.
    """

    def __init__(self, encoding: EncodedCameras, packing: ScenePacking) -> None:
        super().__init__(packing.shape[1])
        self.encoding, self.packing = encoding, packing
        self.block_masks: dict[int, BlockMask] = {}  # masks of the rows; slow to build and the same in all layers

    @property
    def raw_depths(self) -> Mapping[int, Tensor]:
        return self.encoding.raw_depths

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        unpack = self.packing.unpack
        own = self.encoding.at_layer(layer, unpack(hidden_states), (unpack(rope[0]), unpack(rope[1])))
        if own is None:
            return None
        other = copy(self)
        other.encoding = own
        return other

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._packed(*self.encoding.before_rope(self.packing.unpack(q), self.packing.unpack(k)))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._packed(*self.encoding.after_rope(self.packing.unpack(q), self.packing.unpack(k)))

    def transform_values(self, v: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_values(self.packing.unpack(v)))

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        if not self.encoding.attends_per_view:
            return attention(q, k, v, mask)
        q, k, v = (self.packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        output, _ = self.encoding.attend(attention, q, k, v, self._unpacked(mask))
        return self.packing.pack(output), None

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_outputs(self.packing.unpack(o)))

    def _unpacked(self, mask: Any) -> Any:
        """Return the mask of the rows."""
        if not isinstance(mask, BlockMask):
            return unpack_mask(mask, self.packing)
        if id(mask) not in self.block_masks:
            # the new mask keeps the old one alive, so its id stays unique
            self.block_masks[id(mask)] = unpack_mask(mask, self.packing)
        return self.block_masks[id(mask)]

    def _packed(self, q: Tensor, k: Tensor) -> QK:
        return self.packing.pack(q), self.packing.pack(k)


# ---- Attention masks of some queries, in the format of the attention backend -----------------------------------------


def select_blocks(
    mask: BlockMask, rows: Int[Tensor, " blocks"], places: Int[Tensor, "blocks T"], num_keys: int
) -> BlockMask:
    """Return the mask of blocks with the same number of queries, as a batch.

    `rows` has the row of each block, and `places` the places of its queries in the row. Of each row's keys the first
    `num_keys` are kept. The queries can't see the others.
    """
    return _block_mask(
        lambda b, head, query, key: mask.mask_mod(rows[b], head, places[b, query], key),
        (*places.shape, num_keys),
        rows.device,
    )


def unpack_mask(mask: Any, packing: ScenePacking) -> Any:
    """Return the mask of padded rows from the mask of packed sequences.

    Padded queries may attend to all keys of their row.
    """
    count, length = packing.shape
    device = packing.places.device
    place = packing.unpack(torch.arange(length, device=device).expand(count, length))
    is_key = packing.unpack(torch.ones(count, length, dtype=torch.bool, device=device))
    if isinstance(mask, Tensor):
        is_bool = mask.dtype == torch.bool
        rows = packing.unpack(mask.transpose(1, 2).expand(count, *mask.transpose(1, 2).shape[1:]), is_bool)
        columns = place[:, None, None].expand(*rows.shape[:3], -1)
        least = False if is_bool else torch.finfo(mask.dtype).min
        return rows.gather(-1, columns).masked_fill(~is_key[:, None, None], least).transpose(1, 2)
    sequence = packing.unpack(torch.arange(count, device=device)[:, None].expand(count, length))
    return _block_mask(
        lambda b, head, query, key: (
            mask.mask_mod(sequence[b, query], head, place[b, query], place[b, key]) & is_key[b, key]
        ),
        (len(place), place.shape[1], place.shape[1]),
        device,
    )


def _block_mask(visible: Callable[..., Tensor], shape: tuple[int, int, int], device: torch.device) -> BlockMask:
    batch, queries, keys = shape
    create = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    return create(visible, batch, None, queries, keys, device=str(device))
