"""Experiments: the demo, the guidance study, statistics over seeds, and the one report module."""

from __future__ import annotations
