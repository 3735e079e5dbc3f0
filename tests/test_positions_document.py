"""docs/positions.md: its table is up to date, and its rows agree where the text says so."""

from __future__ import annotations

import torch

from docs.position_tables import DOCUMENT, document, rows, this_zoo, transformers_5


def test_the_table_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_this_zoo_is_both_versions_of_transformers() -> None:
    found = {f"{who}, {source}": (seconds, positions) for who, source, seconds, positions in rows()}
    seconds, recorded = next(row for name, row in found.items() if name.startswith("transformers 4.51"))
    assert torch.equal(this_zoo(seconds, "max_thw"), recorded)
    seconds, computed = next(row for name, row in found.items() if "with the video's metadata" in name)
    assert torch.equal(this_zoo(seconds, "max_hw"), computed)
    assert not torch.equal(this_zoo(seconds, "max_thw"), computed)  # negative control
    assert not torch.equal(transformers_5(2 / 24), computed)
