"""Plots of fits, mixtures and the worth of sources for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from herd.scaling.record import law_from

_COLOURS = ("#3b82c4", "#d9822b", "#3f9c5a", "#b04a8f", "#7a6bd1", "#c14d4d")


def draw_fit(figure: Figure, record: Mapping[str, Any]) -> None:
    """The runs of each budget with their parabolas, and the laws through the minima."""
    curves, tokens, loss = figure.subplots(1, 3, width_ratios=(5, 3, 3))
    points = {one["name"]: one for one in record["runs"]}
    for place, budget in enumerate(record["budgets"]):
        colour = _COLOURS[place % len(_COLOURS)]
        own = [points[name] for name in budget["runs"]]
        curves.plot([one["tokens"] for one in own], [one["loss"] for one in own], "o", color=colour, markersize=4)
        if curve := budget["curve"]:
            ends = [math.log(one["tokens"]) for one in own]
            x = np.linspace(min(ends), max(ends), 60)
            y = curve["curvature"] * (x - curve["lowest"]) ** 2 + curve["least"]
            curves.plot(np.exp(x), y, color=colour, linewidth=1, label=f"{budget['flops']:.3g} FLOPs")
            curves.plot(budget["tokens"], budget["loss"], "*", color=colour, markersize=9)
            tokens.plot(budget["flops"], budget["tokens"], "*", color=colour, markersize=9)
            loss.plot(budget["flops"], budget["loss"], "*", color=colour, markersize=9)
    for one in record["diverged"]:
        curves.plot(one["tokens"], one["loss"], "x", color="#c14d4d", label=f"{one['name']} (left out)")
    curves.set(xscale="log", xlabel="tokens", ylabel=record["metric"].replace("_", " "), title="each budget's runs")
    curves.xaxis.set_minor_formatter(NullFormatter())
    curves.legend(fontsize=7)
    _laws(tokens, loss, record)


def _laws(tokens: Axes, loss: Axes, record: Mapping[str, Any]) -> None:
    law, draws = law_from(record["law"]), [law_from(one) for one in record["draws"]]
    used = [one["flops"] for one in record["budgets"] if not one["why"]]
    x = np.geomspace(min(used), 10 * max(used), 40)
    for axes, value in ((tokens, lambda one, c: one.tokens(c)), (loss, lambda one, c: one.loss(c))):
        axes.plot(x, [value(law, c) for c in x], color=_COLOURS[0], linewidth=1, label="law")
        if len(draws) >= 20:
            low, high = np.quantile([[value(one, c) for c in x] for one in draws], (0.025, 0.975), axis=0)
            axes.fill_between(x, low, high, color=_COLOURS[0], alpha=0.15, linewidth=0)
        axes.set(xscale="log", xlabel="FLOPs")
    if law.fitted:
        loss.plot(x, [law.fitted(c) for c in x], color=_COLOURS[1], linewidth=1, linestyle="--", label="fitted floor")
    tokens.set(yscale="log", title=f"best tokens: FLOPs^{law.tokens.exponent:.3f}")
    loss.set(title="loss of the best")
    loss.legend(fontsize=7)


def draw_mix(figure: Figure, record: Mapping[str, Any]) -> None:
    """Predicted against measured loss of each run, and the shares of the mixtures."""
    fits, shares = figure.subplots(1, 2)
    measured, said = zip(*((one["measured"], one["fitted"]) for one in record["runs"]))
    fits.plot(said, measured, "o", color=_COLOURS[0], markersize=4)
    ends = [min(measured), max(measured)]
    fits.plot(ends, ends, color=_COLOURS[1], linewidth=1)
    fits.set(xlabel="regression", ylabel=record["metric"], title="runs")
    names = list(record["sources"])
    mixtures = {name: record[name]["shares"] for name in ("recommended", "uniform", "natural")}
    for place, (mixture, colour) in enumerate(zip(mixtures, _COLOURS)):
        at = np.arange(len(names)) + 0.27 * (place - 1)
        shares.bar(at, [mixtures[mixture][name] for name in names], width=0.25, color=colour, label=mixture)
    shares.set(ylabel="share of tokens", title="mixtures")
    shares.set_xticks(range(len(names)), [name[:14] for name in names], fontsize=7)
    shares.legend(fontsize=7)


def draw_worth(figure: Figure, record: Mapping[str, Any]) -> None:
    """The gain of each source on each evaluation, with its interval over seeds."""
    rows = record["rows"]
    sources = list(dict.fromkeys(row["source"] for row in rows))
    evaluations = list(dict.fromkeys(row["evaluation"] for row in rows))
    for axes, evaluation in zip(np.atleast_1d(figure.subplots(1, len(evaluations))), evaluations, strict=True):
        own = {row["source"]: row for row in rows if row["evaluation"] == evaluation}
        for place, source in enumerate(sources):
            row = own[source]
            if not math.isnan(row["low"]):
                axes.plot([row["low"], row["high"]], [place, place], color=_COLOURS[0], linewidth=1)
            axes.plot(row["gain"], place, "o", color=_COLOURS[0], markersize=4)
        axes.axvline(0, color="#8a8f98", linewidth=0.8)
        axes.set_yticks(range(len(sources)), sources, fontsize=7)
        axes.set_title(evaluation.replace("_", " "), fontsize=8)


DRAWN: dict[str, tuple[str, Callable[..., None]]] = {
    "scaling fit": ("fit.json", draw_fit),
    "scaling mix": ("mix.json", draw_mix),
    "scaling worth": ("worth.json", draw_worth),
}
"""Command -> the file of its run folder that is drawn, and how."""
