"""Placements: the head channels that a matrix encoding transforms, before or after RoPE.

The classes of the first two sections are options of encodings. The last section multiplies channels by the matrices of
their tokens' cameras.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.cameras.cameras import camera_runs
from zoo.configuration import Configurable
from zoo.encodings.base import (
    QK,
    DecoderLayout,
    EncodedByLayer,
    EncodedCameras,
    HeadLayout,
    Rope,
    ZeroChannels,
)
from zoo.errors import InputError, check_choice
from zoo.precision import exact_bmm, highest_matmul_precision

# ---- Existing channels of a head -------------------------------------------------------------------------------------

Section = Literal["t", "h", "w"]
AXES = "thw"  # the sections by the numbers of `HeadLayout.axes`
Matrices = Mapping[str, Float[Tensor, "B C 4 4"]]  # keys: some of q, k, v, o; one matrix per camera


class Placement(Configurable, nn.Module, ABC):
    """The channels on which the cameras' matrices act. A module, because some placements have parameters.

    Attributes:
        requires_constant_time: The symmetries are exact only if all views of a clip share one time position.
        keeps_world: RoPE commutes with the matrices, so attention between views depends on relative poses only.
        keeps_shift: The matrices commute with RoPE, so attention depends on relative positions only.
        leaves_text: Attention between text and views is the original decoder's.
        keeps_stock: Identity matrices change nothing.
        keeps_rope: RoPE's frequencies are the pretrained ones.
    """

    requires_constant_time: bool = False
    keeps_world: bool = True
    keeps_shift: bool = True
    leaves_text: bool = False
    keeps_stock: bool = True
    keeps_rope: bool = True

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        """Create the tensors that depend on the decoder's sizes, see `CameraEncoding.bind_to_decoder`."""

    def head_channels(self, head: HeadLayout) -> list[int]:
        """Return the transformed channels of a head, in groups of four per 4 x 4 matrix, without appended ones."""
        return []

    @abstractmethod
    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        """Apply the matrices to the channels.

        Args:
            cameras: Cameras with the camera of each token.
            matrices: Matrices for row vectors, which are multiplied from the right.
            head: The channels of a head.

        Raises:
            InputError: The placement does not fit heads of this size.
        """


class ChannelPlacement(Placement):
    """A placement on existing channels of a head.

    Attributes:
        before_rope: q' = RoPE(M q) instead of M RoPE(q).
    """

    before_rope: bool = False

    @abstractmethod
    def block(self, head: HeadLayout) -> ChannelBlock:
        """Return the channels. Arguments and errors are those of `place`."""

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.block(decoder.head)  # raises if it does not fit

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> CameraMatrices:
        return CameraMatrices(cameras, self.block(head), not self.before_rope, **matrices)

    def head_channels(self, head: HeadLayout) -> list[int]:
        return self.block(head).channels


class ChannelRange(ChannelPlacement):
    """A contiguous range of head channels, after RoPE.

    Where RoPE rotates whole heads, the first half contains one channel of each RoPE pair. In Qwen3.5, where RoPE
    rotates the first quarter, the first half contains all pairs and the same number of channels without RoPE.

    The range keeps the invariance to a change of world. It breaks RoPE's invariance to a shift of all positions, unless
    the decoder's RoPE does not rotate these channels.

    Args:
        start: First channel, as a fraction of the head width.
        stop: End of the range, as a fraction of the head width.
    """

    keeps_shift = False

    def __init__(self, start: int | float = 0.0, stop: int | float = 0.5) -> None:
        super().__init__()
        check_fractions(self, start, stop)
        self.start, self.stop = start, stop

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.keeps_shift = min(self.head_channels(decoder.head)) >= decoder.head.num_rotated

    def block(self, head: HeadLayout) -> ChannelBlock:
        start, stop = round(self.start * head.dim), round(self.stop * head.dim)
        if stop == start or (stop - start) % 4:
            raise InputError(f"channels {start} to {stop} of {head.dim} are not a multiple of four: change the range")
        return ChannelBlock(range(start, stop))


def check_fractions(placement: Placement, start: int | float, stop: int | float) -> None:
    """Raise InputError unless 0 <= start < stop <= 1."""
    if not 0.0 <= start < stop <= 1.0:
        raise InputError(f"{type(placement).__name__} requires 0 <= start < stop <= 1, got {start} and {stop}")


class UnrotatedChannels(ChannelPlacement):
    """The channels that RoPE does not rotate: 192 of 256 in Qwen3.5, all of a Gated DeltaNet head.

    The invariances to a change of world and to a shift of all positions are both exact, for any time positions.

    Args:
        count: Number of channels, a multiple of four, counted from the end of a head. null is all of them.
    """

    def __init__(self, count: int | None = None) -> None:
        super().__init__()
        if count is not None and (count < 4 or count % 4):
            raise InputError(f"UnrotatedChannels: the number of channels must be a multiple of four, got {count}")
        self.count = count

    def block(self, head: HeadLayout) -> ChannelBlock:
        free = head.dim - head.num_rotated
        count = free // 4 * 4 if self.count is None else self.count
        if not 0 < count <= free:
            raise InputError(
                f"UnrotatedChannels: RoPE rotates {head.num_rotated} of the {head.dim} channels of this decoder's "
                f"heads, which leaves {free}: take a smaller count, or TemporalSection or ChannelRange"
            )
        return ChannelBlock(range(head.dim - count, head.dim))


class TemporalSection(ChannelPlacement):
    """The channels of mRoPE's T section, as RoPE pairs (c, c + F), before RoPE.

    If all views of a clip share one time position, RoPE rotates all of their tokens there by the same angles, which
    cancel. The invariances to a change of world and to a shift of all positions are then both exact. A clip is one
    video. Consecutive images start at different positions, so between them only the invariance to a shift holds.
    """

    before_rope = True
    requires_constant_time = True

    def block(self, head: HeadLayout) -> ChannelBlock:
        section = head.section(AXES.index("t"), self)
        if not section or len(section) % 4:
            raise InputError(
                f"TemporalSection requires a T section with a multiple of four frequencies, got {len(section)}"
            )
        return ChannelBlock(head.pairs(section))


class Frequencies(ChannelPlacement):
    """Some frequencies of one mRoPE section, as RoPE pairs (c, c + F), before RoPE: P x I_2 on four pairs.

    RoPE rotates the four pairs of a group by different angles, so it commutes with the camera only approximately. The
    invariance to a shift of all positions is exact. The invariance to a change of world has the error
    `commutation_error`. With a shared frequency both are exact, but RoPE then differs from the pretrained one, also for
    text.

    Args:
        count: Number of frequencies, a multiple of four.
        section: The mRoPE section.
        shared_frequency: Replace the four frequencies of a group by their geometric mean.
    """

    before_rope = True

    def __init__(self, count: int = 4, section: Section = "w", shared_frequency: bool = False) -> None:
        super().__init__()
        check_choice("section", section, Section)
        if count < 4 or count % 4:
            raise InputError(f"the number of frequencies must be a multiple of four, got {count}")
        self.count, self.section, self.shared_frequency = count, section, shared_frequency
        self.keeps_world, self.keeps_rope = shared_frequency, not shared_frequency

    @abstractmethod
    def choose(self, section: list[int]) -> list[int]:
        """Return `count` of the section's frequencies, which are ordered from high to low."""

    def chosen(self, head: HeadLayout) -> list[int]:
        """Return the numbers of the frequencies.

        Raises:
            InputError: The section has fewer than `count` frequencies.
        """
        section = head.section(AXES.index(self.section), self)
        if self.count > len(section):
            raise InputError(f"mRoPE's {self.section} section has {len(section)} frequencies, fewer than {self.count}")
        return self.choose(section)

    def block(self, head: HeadLayout) -> ChannelBlock:
        return ChannelBlock(head.pairs(self.chosen(head)))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        if self.shared_frequency:
            groups = self._groups_of_four(decoder.head)
            for frequencies in decoder.rope_frequencies:
                frequencies[groups] = frequencies[groups].log().mean(-1, keepdim=True).exp().expand(groups.shape)

    def commutation_error(self, frequencies: Float[Tensor, " F"], head: HeadLayout) -> float:
        """Compute how far RoPE is from a common rotation of each four pairs, in radians per position.

        This is half of the largest range of the four frequencies of a group. In the spectral norm, RoPE's rotation
        between two tokens differs from one that commutes with the cameras by at most this number times the positions
        between them.
        """
        groups = frequencies[self._groups_of_four(head)]
        return float((groups.amax(-1) - groups.amin(-1)).max() / 2)

    def _groups_of_four(self, head: HeadLayout) -> Int[Tensor, "groups 4"]:
        return torch.tensor(self.chosen(head)).view(-1, 4)


class LowFrequencies(Frequencies):
    """The lowest frequencies of one mRoPE section, see `Frequencies`: RoPE almost commutes with the camera there."""

    def choose(self, section: list[int]) -> list[int]:
        return section[-self.count :]


class HighFrequencies(Frequencies):
    """The highest frequencies of one mRoPE section, see `Frequencies`. Unless shared, they are far from commuting."""

    def choose(self, section: list[int]) -> list[int]:
        return section[: self.count]


class FrequencyRange(ChannelPlacement):
    """A range of all RoPE frequencies, counted from the highest. Matrices act before RoPE, as P x I_2 on four pairs.

    A frequency is the RoPE pair of channels (c, c + F). The range does not depend on mRoPE's sections. In Qwen2.5-VL,
    whose sections are in a row, 0 to 0.25 is the T section. In Qwen3-VL and Qwen3.5, which interleave them, each range
    has pairs of all axes.

    Matrices on the highest frequencies disturb a pretrained decoder far less than on the lowest. The invariance to a
    shift of all positions is exact. The invariance to a change of world holds only approximately, as for `Frequencies`.

    Args:
        start: First frequency, as a fraction of all frequencies: 0 is the highest.
        stop: End of the range, as a fraction. Both ends are rounded to multiples of four frequencies.
    """

    before_rope = True
    keeps_world = False

    def __init__(self, start: int | float = 0.0, stop: int | float = 0.5) -> None:
        super().__init__()
        check_fractions(self, start, stop)
        self.start, self.stop = start, stop

    def block(self, head: HeadLayout) -> ChannelBlock:
        start, stop = (GROUP * round(end * len(head.axes) / GROUP) for end in (self.start, self.stop))
        if start == stop:
            raise InputError(
                f"FrequencyRange: {self.start} to {self.stop} of {len(head.axes)} frequencies is less than four: take "
                "a wider range"
            )
        return ChannelBlock(head.pairs(range(start, stop)))


class AlternateAxes(Placement):
    """Placements that alternate cyclically over the layers with the encoding.

    Args:
        placements: Two or more placements. The default is `LowFrequencies` of the sections w and h: the camera shares
            channels with x in one layer and with y in the next.
    """

    def __init__(self, placements: list[Placement] | None = None) -> None:
        super().__init__()
        if placements is None:
            placements = [LowFrequencies(section="w"), LowFrequencies(section="h")]
        if len(placements) < 2:
            raise InputError(f"AlternateAxes requires at least two placements, got {len(placements)}")
        self.each = tuple(placements)
        self.placements = nn.ModuleList(placements)  # registers their parameters
        self.turns: dict[int, int] = {}
        self.requires_constant_time = any(p.requires_constant_time for p in placements)
        self._declare()

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.turns = {layer: number % len(self.each) for number, layer in enumerate(layers)}
        for turn, placement in enumerate(self.each):
            own = (layer for layer in layers if self.turns[layer] == turn)
            placement.bind_to_decoder(decoder, check_not_empty(own, placement))
        self._declare()  # some placements keep more symmetries in this decoder

    def _declare(self) -> None:
        for name in ("keeps_world", "keeps_shift", "leaves_text", "keeps_stock", "keeps_rope"):
            setattr(self, name, all(getattr(p, name) for p in self.each))

    def head_channels(self, head: HeadLayout) -> list[int]:
        return [c for placement in self.each for c in placement.head_channels(head)]

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        return EncodedByLayer([p.place(cameras, matrices, head) for p in self.each], self.turns.__getitem__)


def check_not_empty(layers: Iterable[int], module: nn.Module) -> list[int]:
    """Return the layers. Raise InputError if there are none, because the module would have no effect."""
    own = list(layers)
    if not own:
        raise InputError(f"{type(module).__name__} acts in no layer: change the layers of the subsets around it")
    return own


# ---- Extra channels for the cameras ----------------------------------------------------------------------------------


class ExtraChannels(Placement):
    """Extra channels per head, projected from the hidden states of visual tokens. Zeros for text.

    The model's own channels and RoPE are unchanged. The projections are learned. The projections of queries and outputs
    start at zero, so the untrained model is the original one. Text has zeros in these channels, so the invariance to a
    change of world holds with text in the sequence. A batch without cameras gets no extra channels. In other batches
    text equals the original model up to the order of summation in wider heads.

    Args:
        channels: Extra channels per head, a multiple of four. Flash attention needs a multiple of eight.
    """

    leaves_text = True
    keeps_stock = False

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise InputError(f"the number of extra channels must be a multiple of four, got {channels}")
        self.channels = channels
        self.layers: nn.ModuleDict | None = None

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        projections = {str(layer): ExtraChannelProjections(decoder, self.channels) for layer in layers}
        self.layers = nn.ModuleDict(projections).to(decoder.device)

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        assert self.layers is not None, "bind_to_decoder comes before encode"
        encoded = CameraMatrices(cameras, ChannelBlock(range(self.channels)), True, **matrices)
        return EncodedCameras(encoded.num_tokens) if encoded.is_empty else ExtraChannelCameras(encoded, self.layers)


class ExtraChannelProjections(nn.Module):
    """Projections of one layer: to extra channels of q, k and v, and from extra outputs to the head's own channels."""

    def __init__(self, decoder: DecoderLayout, channels: int) -> None:
        super().__init__()
        self.heads = (decoder.num_heads, decoder.num_key_value_heads, decoder.num_key_value_heads)
        self.q, self.k, self.v = (nn.Linear(decoder.hidden_size, n * channels, bias=False) for n in self.heads)
        self.o = nn.Parameter(torch.zeros(decoder.num_heads, channels, decoder.head.dim))
        nn.init.zeros_(self.q.weight)

    def forward(self, hidden_states: Float[Tensor, "B L W"]) -> list[Float[Tensor, "B L heads d"]]:
        projected = (F.linear(hidden_states, layer.weight.to(hidden_states)) for layer in (self.q, self.k, self.v))
        return [x.unflatten(-1, (heads, -1)) for x, heads in zip(projected, self.heads, strict=True)]


class ExtraChannelCameras(EncodedCameras):
    """The cameras of a forward pass and the projections of all layers."""

    def __init__(self, cameras: CameraMatrices, layers: nn.ModuleDict) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.layers = cameras, layers

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras:
        projections = self.layers[str(layer)]
        assert isinstance(projections, ExtraChannelProjections)
        return _ExtraChannelsAtLayer(self.cameras, hidden_states, projections)

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(len(self.cameras.block.channels))


class _ExtraChannelsAtLayer(EncodedCameras):
    def __init__(self, cameras: CameraMatrices, hidden_states: Tensor, projections: ExtraChannelProjections) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.projections = cameras, projections
        self.visual: Bool[Tensor, "B L 1 1"] = (cameras.index >= 0)[..., None, None]
        self.q, self.k, self.v = (x * self.visual for x in projections(hidden_states))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        extra_q, extra_k = self.cameras.after_rope(self.q, self.k)
        return torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1)

    def transform_values(self, v: Tensor) -> Tensor:
        return torch.cat((v, self.cameras.transform_values(self.v)), -1)

    def transform_outputs(self, o: Tensor) -> Tensor:
        own, extra = o.split((o.shape[-1] - self.q.shape[-1], self.q.shape[-1]), -1)
        extra = self.cameras.transform_outputs(extra) * self.visual
        return own + torch.einsum("blhe,hed->blhd", extra, self.projections.o.to(extra))


# ---- Products of channels with the matrices of their tokens' cameras -------------------------------------------------

GROUP = 4  # channels per matrix
WIDTH = 32  # channels multiplied at once by a block-diagonal matrix, because products of width 4 are slow


class ChannelPart(NamedTuple):
    """Some channels of a block.

    Attributes:
        channels: Channels as a slice or as a tensor of numbers.
        width: Number of channels multiplied at once. It divides the number of channels.
    """

    channels: slice | Tensor
    width: int


class ChannelBlock:
    """Head channels in groups of four, each of which is multiplied by a 4 x 4 matrix.

    A group in the first half of a head and the same group in the second half share a matrix P, which is P x I_2 on four
    of RoPE's pairs. Channels appended by another encoding are not included.

    Args:
        channels: Channel numbers. Their count is a multiple of four.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)

    def parts(self, device: torch.device) -> list[ChannelPart]:
        """Split the channels into parts of whole groups of four.

        A CPU gets parts of `WIDTH` channels, as slices where it can read them without a copy. Any other device gets one
        part, because each call launches kernels.
        """
        if device.type == "cpu":
            return [ChannelPart(_index(run, device), len(run)) for run in self.runs]
        width = max(width for width in range(GROUP, WIDTH + 1, GROUP) if len(self.channels) % width == 0)
        return [ChannelPart(_index(self.channels, device), width)]

    @cached_property
    def runs(self) -> list[list[int]]:
        """Runs of at most `WIDTH` channels with constant steps. A group with uneven steps is its own run."""
        runs: list[list[int]] = []
        for i in range(0, len(self.channels), GROUP):
            group = self.channels[i : i + GROUP]
            if runs and len(runs[-1]) < WIDTH and _step(runs[-1]) and _step([*runs[-1], *group]):
                runs[-1] += group
            else:
                runs.append(group)
        return runs


def _index(channels: list[int], device: torch.device) -> slice | Tensor:
    step = _step(channels)
    if step:
        return slice(channels[0], channels[0] + step * len(channels), step)
    return torch.tensor(channels).to(device, non_blocking=True)


def _step(channels: list[int]) -> int:
    """Return the constant positive difference of adjacent channels, or 0."""
    steps = {b - a for a, b in pairwise(channels)}
    return max(steps) if len(steps) == 1 and min(steps) > 0 else 0


class CameraMatrices(EncodedCameras):
    """Multiply groups of four channels, as row vectors, by the 4 x 4 matrix of the token's camera.

    Tokens without a camera and other channels are unchanged, bit for bit. Identity matrices change nothing at all.

    Args:
        cameras: Cameras with the camera of each token. With `token_runs` the host does not wait for the GPU.
        block: The channels.
        on_rotated: Whether q and k are transformed after RoPE instead of before.
        matrices: Matrices for some of q, k, v and o: one matrix per camera, multiplied from the right.
    """

    def __init__(
        self, cameras: Cameras, block: ChannelBlock, on_rotated: bool, **matrices: Float[Tensor, "_B _C 4 4"]
    ) -> None:
        index = cameras.index
        assert index is not None
        super().__init__(index.shape[1])
        self.index, self.block, self.on_rotated = index, block, on_rotated
        found = camera_runs(index) if cameras.token_runs is None else cameras.token_runs
        self.products = CameraProducts(found.places, block.parts(index.device))
        camera = index.flatten()[found.firsts]
        place = (found.firsts // index.shape[1], camera.clamp(min=0))
        # tokens of a run whose camera turned out to be invalid are multiplied by the identity, bit for bit
        identity = torch.eye(4, dtype=torch.float64, device=index.device)
        valid = (camera >= 0)[:, None, None]
        of_parts = {term: torch.where(valid, m[place], identity.to(m)) for term, m in matrices.items()}
        self.run_matrices = {
            term: block_diagonal(m, self.products.parts).split(found.parts_per_run) for term, m in of_parts.items()
        }

    @property
    def is_empty(self) -> bool:
        """Whether no token has a camera."""
        return not self.products.tokens

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return (q, k) if self.on_rotated else (self._multiply(q, "q"), self._multiply(k, "k"))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return (self._multiply(q, "q"), self._multiply(k, "k")) if self.on_rotated else (q, k)

    def transform_values(self, v: Tensor) -> Tensor:
        return self._multiply(v, "v")

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self._multiply(o, "o")

    def _multiply(self, x: Float[Tensor, "B L heads D"], term: str) -> Float[Tensor, "B L heads D"]:
        matrices = self.run_matrices.get(term)
        return map_tokens(x, self.products, matrices) if matrices else x


def block_diagonal(matrices: Float[Tensor, "n 4 4"], parts: Sequence[ChannelPart]) -> Float[Tensor, "n w w"]:
    """Repeat each matrix along the diagonal of a larger one, as wide as the widest part."""
    width = max(part.width for part in parts)
    groups = torch.eye(width // GROUP, dtype=matrices.dtype, device=matrices.device)
    # an elementwise product: autocast would round a matrix product
    return (groups[:, None, :, None] * matrices[:, None, :, None, :]).reshape(-1, width, width)


class CameraProducts:
    """Products of some channels of some tokens with matrices. Each matrix acts on the same number of adjacent tokens.

    Args:
        tokens: The tokens of a flattened batch, see `CameraRuns.places`.
        parts: The channels.
    """

    def __init__(self, tokens: Sequence[slice | Tensor], parts: Sequence[ChannelPart]) -> None:
        self.tokens, self.parts = tokens, parts

    def write(self, x: Float[Tensor, "B L heads E"], out: Tensor, matrices: Sequence[Tensor]) -> None:
        """Write the products into a contiguous copy of the tokens.

        Args:
            x: The tokens.
            out: The copy.
            matrices: Matrices of each entry of `tokens`, in the form of `block_diagonal`.
        """
        every = out.flatten(0, 1)
        for run, of_run in zip(self.tokens, matrices, strict=True):
            rows = every[run]  # a view for a slice, a copy for numbers
            for channels, width in self.parts:
                read = rows[..., channels]
                factors = read.to(of_run.dtype).reshape(len(of_run), -1, width), of_run[:, :width, :width]
                product = exact_bmm(*factors).view(read.shape)
                rows[..., channels] = product if isinstance(channels, slice) else product.to(out.dtype)
            if not isinstance(run, slice):
                every[run] = rows

    def transposed(self) -> CameraProducts:
        """Return the map of gradients, which uses transposed matrices."""
        return self

    def matrix_grads(self, x: Tensor, grad: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Compute the gradients of the matrices from the gradient of the result."""
        return [
            self._matrix_grad(x.flatten(0, 1)[run], grad.flatten(0, 1)[run], of_run)
            for run, of_run in zip(self.tokens, matrices, strict=True)
        ]

    def _matrix_grad(self, x: Float[Tensor, "N heads E"], grad: Tensor, matrices: Tensor) -> Float[Tensor, "n w w"]:
        total = torch.zeros_like(matrices)
        for channels, width in self.parts:
            rows, grads = (each[..., channels].to(total.dtype).reshape(len(total), -1, width) for each in (x, grad))
            total[:, :width, :width] += rows.mT @ grads
        return total


def map_tokens(
    x: Float[Tensor, "B L heads E"], products: CameraProducts, matrices: Sequence[Tensor]
) -> Float[Tensor, "B L heads E"]:
    """Return tokens multiplied by matrices, see `CameraProducts`. Other tokens and channels are unchanged."""
    return _MapTokens.apply(x, products, *matrices)


class _MapTokens(torch.autograd.Function):
    """Write a linear map of tokens into one copy of them.

    It is hand-written for speed in every decoder layer. For 1024 tokens with 16 heads of 128 channels, forward and
    backward take 8 to 12 ms on one CPU thread. Plain operators (slices, bmm and cat) take 17 to 18 ms and allocate
    more. timings/attention.md compares whole encodings with plain attention.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: CameraProducts, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x if any(m.requires_grad for m in matrices) else None, *matrices)
        ctx.products = products
        out = x.clone(memory_format=torch.contiguous_format)
        with nullcontext() if torch.compiler.is_compiling() else highest_matmul_precision(x.device):
            products.write(x, out, matrices)  # by `exact_bmm`
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *matrices = ctx.saved_tensors
        matrix_grads = [None] * len(matrices) if x is None else ctx.products.matrix_grads(x, grads[0], matrices)
        grad_x = _MapTokens.apply(grads[0], ctx.products.transposed(), *(m.mT for m in matrices))
        return grad_x, None, *matrix_grads
