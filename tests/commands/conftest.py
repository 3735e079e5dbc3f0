"""A report without plots."""

from __future__ import annotations

import pytest


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the plots out of pages, which take seconds."""
    monkeypatch.setattr("commands.reports.page.draw", lambda *scores, **families: None)
    monkeypatch.setattr("commands.reports.questions.draw_errors", lambda *errors: None)
