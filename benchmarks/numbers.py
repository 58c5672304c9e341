"""Medians and spreads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of some numbers, with what lies around it."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    tenths = statistics.quantiles(ordered, n=10, method="inclusive") if len(ordered) > 1 else ordered * 9
    return {
        "n": len(ordered),
        "median": _round(statistics.median(ordered)),
        "p10": _round(tenths[0]),
        "p90": _round(tenths[-1]),
        "min": _round(ordered[0]),
        "max": _round(ordered[-1]),
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")
