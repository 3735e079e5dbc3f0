"""Places of visual tokens in sequences. `SequenceLayout` finds the video or image, view and grid cell of each one.

It starts with the merging of patches into visual tokens, which is the same for all supported backbones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

# consecutive frames in one visual token; `Backbone` checks this and the next against its checkpoint
TEMPORAL_PATCH_SIZE = 2
SPATIAL_MERGE_SIZE = 2  # patches per side in one visual token
PATCHES_PER_TOKEN = TEMPORAL_PATCH_SIZE * SPATIAL_MERGE_SIZE**2
IMAGE_PIXELS = (4 * 28**2, 16384 * 28**2)  # minimum and maximum pixels of an image: 4 to 16,384 tokens of Qwen2.5-VL

GridTHW = tuple[int, int, int] | Int[Tensor, " 3"]  # (t, h, w); reading a tensor on a GPU makes the host wait


Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True)
class ExtraTokens:
    """The tokens after the 2D tokens of each row, after those of each view, and after the last view of a video.

    Each has the position of a 2D token. Behind a row it is the last one of the row.

    Attributes:
        per_row: Number of tokens after each row of 2D tokens.
        per_view: Number of tokens after the last row of each view, at the position of the view's first 2D token.
        per_token: Number of tokens after the last row of each view for each of its 2D tokens, at their positions.
        at_end: Number of tokens after the last view of a video.
        at_last: Whether the tokens after a view have the position of its last 2D token.
    """

    per_row: int = 0
    per_view: int = 0
    per_token: int = 0
    at_end: int = 0
    at_last: bool = False

    NONE: ClassVar[ExtraTokens]
    ONE: ClassVar[ExtraTokens]
    LAST: ClassVar[ExtraTokens]
    ALL: ClassVar[ExtraTokens]
    END: ClassVar[ExtraTokens]
    LAST_AND_END: ClassVar[ExtraTokens]

    def row_tokens(self, rows: Count, columns: Count) -> Count:
        """Return the number of visual tokens of a view's rows, with the tokens after each row."""
        return rows * (columns + self.per_row)

    def view_tokens(self, rows: Count, columns: Count) -> Count:
        """Return the number of visual tokens of a view of this size in 2D tokens, extra tokens included."""
        return self.row_tokens(rows, columns) + self.per_view + self.per_token * rows * columns


ExtraTokens.NONE, ExtraTokens.ONE, ExtraTokens.ALL = ExtraTokens(), ExtraTokens(per_view=1), ExtraTokens(per_token=1)
ExtraTokens.LAST, ExtraTokens.END = ExtraTokens(per_view=1, at_last=True), ExtraTokens(at_end=1, at_last=True)
ExtraTokens.LAST_AND_END = ExtraTokens(per_view=1, at_end=1, at_last=True)


# ---- Places of the visual tokens in a batch of sequences, computed once on the CPU ----------------------------------

MediaKind = Literal["video", "image"]


class Placeholders(NamedTuple):
    """Token ids that mark visual tokens in a prompt.

    Attributes:
        video: Marks one visual token of a video.
        image: Marks one visual token of an image.
        vision_start: Precedes the first placeholder of each run. None if images follow each other without a mark, as in
            LLaVA.
        span_per_step: Whether each temporal patch of a video is a separate run, with text between the runs.
    """

    video: int
    image: int
    vision_start: int | None
    span_per_step: bool = False

    @property
    def visual(self) -> tuple[int, int]:
        """The placeholders of visual tokens."""
        return self.video, self.image

    @property
    def reserved(self) -> tuple[int, ...]:
        """The tokens that no answer contains."""
        return self.visual if self.vision_start is None else (*self.visual, self.vision_start)


class MediaSpan(NamedTuple):
    """One video or image in a batch of sequences, as one or several spans of visual tokens.

    Attributes:
        row: The sequence that contains it.
        kind: "video" or "image".
        number: Index among the videos, or among the images, of the batch.
        steps: Number of temporal patches.
        steps_before: Number of temporal patches before it in the same sequence, over all videos and images.
    """

    row: int
    kind: MediaKind
    number: int
    steps: int
    steps_before: int


class SequenceLayout:
    """The spans of visual tokens of a batch, and for each token its span, temporal patch and grid cell.

    A span is a run of consecutive placeholders: an image, a video, or one temporal patch of a video in a prompt with
    text between them (`Placeholders.span_per_step`). All tensors are on the CPU.

    Args:
        input_ids: Token ids with one placeholder per visual token, extra tokens included.
        attention_mask: 0 for padding, which may be on either side. None means no padding.
        video_grid_thw: (t, h, w) in patches before merging, one row per video in the order of the batch.
        image_grid_thw: The same for images.
        placeholders: Token ids of the backbone.
        spatial_merge_size: Patches per side in one visual token.
        extra_tokens: Tokens after the 2D tokens of each row and view, and after the last view of a video.

    Attributes:
        media: Videos and images, in the order in which they appear.
        medium: The medium of each span.
        row: The sequence of each token that is not padding.
        start: Index of each span's first token, among the tokens that are not padding.
        grid: (t, h, w) of each span in visual tokens.
        is_video: Whether each span belongs to a video.
        span: The span of each visual token.
        step: The temporal patch of each visual token within its span.
        cell: Cell of each visual token in the (h, w) grid, row by row. An extra token has the cell of the 2D token
            whose position it shares.
        is_extra: Whether each visual token is an extra token.

    Raises:
        ValueError: Grids and placeholders do not match.
    """

    def __init__(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        *,
        video_grid_thw: Int[Tensor, "V 3"] | None = None,
        image_grid_thw: Int[Tensor, "I 3"] | None = None,
        placeholders: Placeholders,
        spatial_merge_size: int = SPATIAL_MERGE_SIZE,
        extra_tokens: ExtraTokens = ExtraTokens.NONE,
    ) -> None:
        self.shape = input_ids.shape
        host_ids = input_ids.cpu()
        self.mask: Bool[Tensor, "B L"] = (
            torch.ones_like(host_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
        )
        ids, self.row = host_ids[self.mask], self.mask.nonzero()[:, 0]

        # 1. Spans: placeholders that follow a vision_start token. The spans of a video are consecutive.
        is_visual = torch.isin(ids, torch.tensor(placeholders.visual))
        if placeholders.vision_start is None:  # the sizes of the images tell where each one starts
            sizes = torch.zeros(0, 3, dtype=ids.dtype) if image_grid_thw is None else image_grid_thw.to(ids)
            sides = sizes[:, 1:] // spatial_merge_size
            ends = (sizes[:, 0] * extra_tokens.view_tokens(sides[:, 0], sides[:, 1])).cumsum(0)
            every = is_visual.nonzero()[:, 0]
            first = torch.cat((ends.new_zeros(1), ends))[: len(sizes)]
            self.start: Int[Tensor, " M"] = every[first[first < len(every)]]
        else:
            follows = torch.zeros_like(ids, dtype=torch.bool)
            follows[1:] = (ids[:-1] == placeholders.vision_start) & (self.row[1:] == self.row[:-1])
            self.start = (follows & is_visual).nonzero()[:, 0]
        self.is_video: Bool[Tensor, " M"] = ids[self.start] == placeholders.video
        self.grid: Int[Tensor, "M 3"] = ids.new_zeros(len(self.start), 3)
        number = torch.zeros_like(self.start)
        for kind, chosen, grids in (
            ("image", ~self.is_video, image_grid_thw),
            ("video", self.is_video, video_grid_thw),
        ):
            own = torch.zeros(0, 3, dtype=ids.dtype) if grids is None else grids.to(ids)
            medium, found, unit = torch.arange(len(own)), f"{kind}s", "rows"
            if kind == "video" and placeholders.span_per_step:
                medium, _ = owners(own[:, 0])
                own, found, unit = own[medium], "blocks of videos", "temporal patches"
                own[:, 0] = 1
            given, shown = len(own), int(chosen.sum())
            if given != shown:
                raise ValueError(f"the prompts hold {shown} {found}, but {kind}_grid_thw has {given} {unit}")
            self.grid[chosen], number[chosen] = own, medium
        self.grid[:, 1:] //= spatial_merge_size
        of_span = torch.stack((self.row[self.start], self.is_video, number), 1)
        first = torch.ones_like(self.is_video)
        first[1:] = (of_span[1:] != of_span[:-1]).any(1)
        self.medium: Int[Tensor, " M"] = first.cumsum(0) - 1
        steps = torch.zeros_like(self.medium[first]).index_add(0, self.medium, self.grid[:, 0])
        spans = torch.cat((of_span[first], steps[:, None], self.steps_before[first, None]), 1).tolist()
        self.media = [MediaSpan(row, "video" if is_video else "image", *others) for row, is_video, *others in spans]
        if len(self.media) != len({(medium.kind, medium.number) for medium in self.media}):
            raise ValueError("the temporal patches of a video do not follow each other in one sequence")

        # 2. Tokens: each view has h rows of w 2D tokens, each row with its extra tokens, then those of the view. More
        # may follow the last view of a video.
        per_view = extra_tokens.view_tokens(self.grid[:, 1], self.grid[:, 2])
        is_last = F.pad(self.medium.diff(), (0, 1), value=1) > 0
        lengths = self.grid[:, 0] * per_view + extra_tokens.at_end * (is_last & self.is_video)
        self.span, within = owners(lengths)
        self.step = torch.minimum(within // per_view[self.span], self.grid[self.span, 0] - 1)
        place = within - self.step * per_view[self.span]
        rows, columns = self.grid[self.span, 1], self.grid[self.span, 2]
        per_row, of_rows = columns + extra_tokens.per_row, extra_tokens.row_tokens(rows, columns)
        row, column = place // per_row, place % per_row
        self.is_extra: Bool[Tensor, " tokens"] = (place >= of_rows) | (column >= columns)
        shared = rows * columns - 1 if extra_tokens.at_last else place - of_rows
        in_row = row * columns + torch.minimum(column, columns - 1)
        self.cell: Int[Tensor, " tokens"] = torch.where(place >= of_rows, shared, in_row)
        self.tokens: Int[Tensor, " tokens"] = self.start[self.span] + within
        self._check(ids, lengths)

    def _check(self, ids: Tensor, lengths: Tensor) -> None:
        """Compare the runs of placeholders with the grids."""
        last = max(len(ids) - 1, 0)
        inside, first = self.tokens.clamp(max=last), self.start[self.span]
        fewer = (self.tokens > last) | (ids[inside] != ids[first]) | (self.row[inside] != self.row[first])
        after = self.start + lengths
        is_next = torch.isin(after, self.start)  # images may adjoin
        more = (after <= last) & (ids[after.clamp(max=last)] == ids[self.start]) & ~is_next
        for is_wrong, where, amount in ((fewer, first, "fewer"), (more, self.start, "more")):
            if is_wrong.any():
                sample = int(self.row[where[is_wrong][0]])
                raise ValueError(
                    f"sample {sample} of the batch has {amount} placeholder tokens than its grid_thw requires"
                )

    @property
    def steps_before(self) -> Int[Tensor, " M"]:
        """Number of temporal patches before each span in the same sequence, over all videos and images."""
        steps, row = self.grid[:, 0], self.row[self.start]
        before = steps.cumsum(0) - steps
        return before - before[torch.searchsorted(row, row)]  # rows ascend, so this finds the first span of the row

    def camera_index(self) -> Int[Tensor, "B L"]:
        """Return the temporal patch of each 2D token, counted over all videos and images of its sequence.

        Returns:
            The `index` for `Cameras` with one camera per temporal patch. -1 for text and extra tokens.
        """
        return self.scatter(torch.where(self.is_extra, -1, self.steps_before[self.span] + self.step), -1)

    def scatter(self, values: Shaped[Tensor, "tokens ..."], fill: int | float | bool) -> Shaped[Tensor, "B L ..."]:
        """Put one value per visual token at its place in the batch, and `fill` elsewhere."""
        every = values.new_full((self.mask.numel(), *values.shape[1:]), fill)
        every[self.places] = values
        return every.unflatten(0, self.shape)

    @property
    def places(self) -> Int[Tensor, " tokens"]:
        """The place of each visual token in the flattened batch."""
        return self.mask.flatten().nonzero()[:, 0][self.tokens]

    @property
    def tokens_per_row(self) -> list[int]:
        """Number of visual tokens of each sequence."""
        return torch.bincount(self.row[self.tokens], minlength=self.shape[0]).tolist()


def owners(lengths: Int[Tensor, " M"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """For items laid out in runs of these lengths, return the run of each item and its place in the run."""
    ends = lengths.cumsum(0)
    places = torch.arange(int(lengths.sum()))
    # faster than repeat_interleave, which starts threads even for tiny inputs
    run = torch.searchsorted(ends, places, right=True)
    return run, places - (ends - lengths)[run]


def is_contiguous(media: Sequence[MediaSpan]) -> bool:
    """Return whether no video is between the images of a sequence."""
    runs = [row for (row, kind), _ in groupby(media, lambda medium: (medium.row, medium.kind)) if kind == "image"]
    return len(runs) == len(set(runs))
