"""docs/architecture.md: its tables are up to date, and what it states about parts, files and imports holds."""

from __future__ import annotations

import re

from docs.architecture import DOCUMENT, ROOT, SEAMS, document


def test_tables_are_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_the_figure_shows_each_part_that_has_an_option() -> None:
    figure = DOCUMENT.read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]
    parts = {seam.bases[0] for seam in SEAMS if seam.chosen_by.startswith(("--model.", "--data."))}
    assert len(parts) > 8 and parts <= set(re.findall(r"\w+", figure))


def test_every_file_named_exists() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:zoo|datamodules|callbacks|commands|configs|docs|tests)/(?:[\w/]+\.\w+)?)", text))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert all((ROOT / file).exists() for seam in SEAMS for file in (seam.files, *seam.listed_in))


def test_a_part_is_listed_where_those_are_that_ship() -> None:
    """One of each kind is named by the `__init__.py` files of the table, and by no other."""
    shipped = ("PRoPE", "ViewAttention", "TinyVGGT", "AddFusion", "ConstantIndex", "TinyQwen3VL", "MaskedViews",
               "PRoPEMLLM", "UniformSampler", "Duplicate", "SceneFolder", "PanelBench")  # fmt: skip
    menus = [ROOT / "zoo/__init__.py", ROOT / "datamodules/__init__.py"]
    for seam, name in zip(SEAMS, shipped, strict=True):
        files = ROOT / seam.files
        package = (files if files.is_dir() else files.parent) / "__init__.py"
        naming = {file for file in (*menus, package) if re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))}
        listed = {ROOT / file for file in seam.listed_in if file.endswith("__init__.py")}
        assert naming == listed, seam.part
