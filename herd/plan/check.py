"""Comparing the projection with Meta's published figures."""

from __future__ import annotations

import textwrap
from typing import Any

from herd.model.config import num_parameters
from herd.model.sizes import LLAMAS
from herd.plan import published
from herd.plan.project import Machine, lay_out, summed
from herd.plan.wanted import Wanted


def checks(run_405b: Wanted, machine: Machine) -> dict[str, Any]:
    """The published figures and the projected ones; `run_405b` is the Llama 3 paper's run, on its `machine`."""
    rows = []
    for row in published.TABLE_4:
        step = published.predicted(row)
        rows.append(
            {
                "layout": str(row.layout),
                "row_tokens": row.row_tokens,
                "measured_mfu": row.tflops * 1e12 / published.H100.flops,
                "printed_mfu": row.mfu,
                "predicted_mfu": step.mfu,
                "seconds_by_term": step.terms,
            }
        )
    return {
        "table_4": rows,
        "gpu_hours": {"published": published.GPU_HOURS, "405B_predicted": _hours(run_405b, machine)},
        "implied_mfu": {name: published.implied_mfu(name) for name in published.GPU_HOURS},
        "llama2_70b_weights_bytes": 2 * num_parameters(LLAMAS["llama2-70B"]),
    }


def _hours(wanted: Wanted, machine: Machine) -> float:
    """GPU hours of the paper's recipe: three batch sizes, then 800B tokens in long rows, laid out as in table 4."""
    short, long = published.TABLE_4[1:]
    planned = [
        lay_out(wanted.model, machine, phase, (long if phase.row_tokens == long.row_tokens else short).layout)
        for phase in wanted.phases
    ]
    return summed(wanted.model, machine, planned).device_hours


def check_table(figures: dict[str, Any]) -> str:
    """The result of `checks` as text."""
    lines = ["Table 4 of the Llama 3 paper, calibrated on its first row only:", ""]
    lines.append(f"  {'layout':<40}{'row':>8}{'measured':>12}{'predicted':>12}")
    for row in figures["table_4"]:
        total = sum(row["seconds_by_term"].values())
        terms = ", ".join(f"{n} {s / total:.1%}" for n, s in row["seconds_by_term"].items() if s > 0.003 * total)
        lines.append(
            f"  {row['layout'].removesuffix(' · recompute light'):<40}{row['row_tokens']:>8,}"
            f"{row['measured_mfu']:>12.1%}{row['predicted_mfu']:>12.1%}"
        )
        lines += textwrap.wrap(f"share of step time: {terms}", 80, initial_indent="    ", subsequent_indent="      ")
    hours, mine = figures["gpu_hours"]["published"]["405B"], figures["gpu_hours"]["405B_predicted"]
    lines += [
        "",
        f"GPU hours of 405B: published {hours / 1e6:.2f}M, projected {mine / 1e6:.2f}M ({mine / hours - 1:+.0%})",
    ]
    for name in ("8B", "70B"):
        lines.append(
            f"GPU hours of {name}: the published {published.GPU_HOURS[name] / 1e6:.2f}M imply an MFU of "
            f"{figures['implied_mfu'][name]:.1%}, restarts\n  included; not used for calibration"
        )
    lines.append(f"Weights of Llama 2 70B: {figures['llama2_70b_weights_bytes'] / 1e9:.0f} GB")
    return "\n".join(lines)
