"""Exact symmetries of encodings: declared by each class, tested in both directions, listed in docs/encodings.md."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Symmetries:
    """Exact symmetries of the decoder's attention under an encoding. False means measurably broken.

    Attributes:
        world_views: Invariant to a change of world V -> V G among visual tokens, with the cameras of the data.
        world_text: The same with text in the sequence.
        canonical: The same as configured, with text: with the encoding's own reference view, if it has one.
        scale: Invariant to a common factor on all translations.
        shift: Invariant to a common shift of all position ids, as the stock decoder is.
        intrinsics: Independent of the intrinsics.
        per_token: One camera per token gives the same result as the same cameras given per image.
        identity_stock: Identity cameras give the stock decoder, bit for bit.
        text_stock: A batch without cameras gives the stock decoder, bit for bit.
    """

    world_views: bool = True
    world_text: bool = True
    canonical: bool = True
    scale: bool = True
    shift: bool = True
    intrinsics: bool = True
    per_token: bool = True
    identity_stock: bool = True
    text_stock: bool = True

    def __and__(self, other: Symmetries) -> Symmetries:
        """Return the symmetries that both have."""
        return Symmetries(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class ViewSymmetries:
    """Exact symmetries of a view mixer, which acts before the decoder, without text and without a causal mask.

    Attributes:
        world_views: Invariant to a change of world V -> V G, with the cameras of the data.
        canonical: The same as configured: with the mixer's own reference view, if it has one.
        scale: Invariant to a common factor on all translations.
        intrinsics: Independent of the intrinsics.
        order: Equivariant to a permutation of the views, with the reference view fixed.
    """

    world_views: bool
    canonical: bool
    scale: bool
    intrinsics: bool
    order: bool = True
