"""What an encoding keeps exactly: declared beside it, tested in both directions, printed in docs/encodings.md."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Symmetries:
    """What holds exactly in the decoder's attention; what is False is really broken, and a test shows it.

    Attributes:
        world_views: a common change of world, V -> V G, cancels among visual tokens, with the data's own cameras.
        world_text: it does with text in the sequence too.
        canonical: it does as configured, text included: from the encoding's own reference view, if it has one.
        scale: a common factor on all translations cancels.
        shift: a common shift of all position ids cancels, as it does in the stock decoder.
        intrinsics: they are not read.
        per_token: cameras given one a token act as the same cameras given one an image.
        identity_stock: identity cameras leave every bit of the stock decoder.
        text_stock: a batch without cameras does.
    """

    world_views: bool
    world_text: bool
    canonical: bool
    scale: bool
    shift: bool
    intrinsics: bool = True
    per_token: bool = True
    identity_stock: bool = True
    text_stock: bool = True

    def __and__(self, other: Symmetries) -> Symmetries:
        """What both keep."""
        return Symmetries(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class ViewSymmetries:
    """What holds exactly for a branch beside the 2D tokens, before the decoder: no text is there, and no causal mask.

    Attributes:
        world_views: a common change of world, V -> V G, cancels, with the data's own cameras.
        canonical: it does as configured: from the branch's own reference view, if it has one.
        scale: a common factor on all translations cancels.
        intrinsics: they are not read.
        order: a permutation of the views, the reference view fixed, permutes the result and nothing else.
    """

    world_views: bool
    canonical: bool
    scale: bool
    intrinsics: bool
    order: bool = True
