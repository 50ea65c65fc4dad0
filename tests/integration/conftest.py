"""Fixtures of tests that run the real command."""

from __future__ import annotations

from tests.support.runs import place

__all__ = ["place"]
