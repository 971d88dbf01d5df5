"""Runs of these tests are many and small."""

from __future__ import annotations

from tests.quick import quick_runs  # noqa: F401
