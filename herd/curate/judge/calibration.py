"""The picture of a classifier's calibration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_calibration(report: dict[str, Any], path: Path) -> None:
    """Calibration: what was predicted against what was, by bins of held-out texts."""
    rows = report["calibration"]
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
    axes.plot([row["predicted"] for row in rows], [row["wanted"] for row in rows], marker="o", color="#1f6f8b")
    axes.set(xlabel="predicted", ylabel="labelled", xlim=(0, 1), ylim=(0, 1), title="Calibration on held-out texts")
    figure.savefig(path.with_suffix(".tmp.svg"), metadata={"Date": None})
    os.replace(path.with_suffix(".tmp.svg"), path)
