"""IsoFLOP fits: the best size for each budget, and laws for the best tokens, parameters and loss of any budget.

Source: The Llama 3 Herd of Models, section 3.2.1, and Hoffmann et al. 2022 (arXiv 2203.15556), approaches 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from herd.errors import DataError
from herd.scaling.curves import Parabola, Power, huber_fit, parabola, power
from herd.scaling.points import Point

PAPER = Power(0.299, 0.537)
"""Tokens of a budget in the paper: figure 3's legend; the text rounds to 0.29 and 0.53."""
IRREDUCIBLE = 0.55
"""Irreducible loss in bits per byte: the 1.69 nats per token of Hoffmann et al. at 4.4 bytes per token."""
_SAME_BUDGET = math.log(1.15)
_HUBER = 1e-3  # of a logarithm of the loss, as in Hoffmann et al.


@dataclass(frozen=True)
class Budget:
    """The runs of one budget, and parabolas of their loss over log tokens and log parameters."""

    flops: float
    points: tuple[Point, ...]
    over_tokens: Parabola | None = None
    over_parameters: Parabola | None = None
    why: str = ""  # why it has no minimum

    @property
    def tokens(self) -> float:
        return math.exp(self.over_tokens.lowest) if self.over_tokens else math.nan

    @property
    def parameters(self) -> float:
        return math.exp(self.over_parameters.lowest) if self.over_parameters else math.nan

    @property
    def loss(self) -> float:
        return self.over_tokens.least if self.over_tokens else math.nan

    def residuals(self) -> np.ndarray:
        """Each run's loss minus the parabola."""
        if self.over_tokens is None:
            return np.zeros(0)
        at = np.log([point.tokens for point in self.points])
        return np.array([point.loss for point in self.points]) - self.over_tokens(at)


@dataclass(frozen=True)
class LossLaw:
    """loss = irreducible + factor C^exponent of the best model of a budget."""

    irreducible: float
    power: Power

    def __call__(self, flops: float) -> float:
        return self.irreducible + self.power(flops)


@dataclass(frozen=True)
class Joint:
    """loss = irreducible + a N^-alpha + b D^-beta, fitted to all runs at once with a Huber loss."""

    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float
    flops_per_pair: float  # C / (N D), 6 where neither attention nor the head counts

    def loss(self, parameters: float, tokens: float) -> float:
        return self.irreducible + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens with the lowest loss for a budget."""
        pairs, both = flops / self.flops_per_pair, self.alpha + self.beta
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        return ratio * pairs ** (self.beta / both), pairs ** (self.alpha / both) / ratio


@dataclass(frozen=True)
class Law:
    """Power laws through the minima of all budgets."""

    tokens: Power
    parameters: Power
    loss: LossLaw
    fitted: LossLaw | None = None  # with the irreducible loss fitted too, from three budgets on


@dataclass(frozen=True)
class Fit:
    """Budgets, the law through them, and its bootstrap."""

    budgets: list[Budget]
    law: Law
    draws: list[Law] = field(default_factory=list)
    joint: Joint | None = None
    joint_why: str = ""  # why there is no joint fit
    noise: float = 0.0  # standard deviation of a run's loss around its budget's parabola
    notes: list[str] = field(default_factory=list)


def budgets_of(points: Sequence[Point]) -> list[Budget]:
    """The points grouped by budget; FLOPs within 15 % of the next smaller run belong together."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if groups and math.log(point.flops / groups[-1][-1].flops) < _SAME_BUDGET:
            groups[-1].append(point)
        else:
            groups.append([point])
    return [_budget(group) for group in groups]


def _budget(points: Sequence[Point]) -> Budget:
    flops = math.exp(float(np.mean(np.log([point.flops for point in points]))))
    losses = [point.loss for point in points]
    try:
        tokens = parabola(np.log([point.tokens for point in points]), losses)
        weights = parabola(np.log([point.parameters for point in points]), losses)
    except DataError as error:
        return Budget(flops, tuple(points), why=str(error))
    return Budget(flops, tuple(points), tokens, weights)


def fit(points: Sequence[Point], *, irreducible: float = IRREDUCIBLE, draws: int = 500, seed: int = 0) -> Fit:
    """The law through runs, with a bootstrap of `draws` samples of the parabolas' residuals.

    Raises:
        DataError: fewer than two budgets have a minimum, or a loss is below the irreducible one.
    """
    budgets = budgets_of(points)
    good = [budget for budget in budgets if not budget.why]
    notes = [f"{budget.flops:.3g} FLOPs are left out of the law: {budget.why}" for budget in budgets if budget.why]
    if len(good) < 2:
        reasons = "".join(f"\n  {one.flops:.3g} FLOPs, {len(one.points)} runs: {one.why or 'good'}" for one in budgets)
        raise DataError(
            "a law needs two budgets with a minimum, better three or more, of at least three sizes each; got "
            f"{len(good)}{reasons}"
        )
    lowest = min(budget.loss for budget in good)
    if lowest <= irreducible:
        raise DataError(
            f"the best loss, {lowest:.4g}, is below irreducible={irreducible:g}, the lower bound of any model: "
            "give a smaller one (0.55 is for bits per byte of web text)"
        )
    if len(good) == 2:
        notes.append("two budgets determine a law exactly, without any check; a third would test it")
    spread = np.concatenate([budget.residuals() for budget in good])
    free = sum(len(budget.points) - 3 for budget in good)
    noise = float(np.sqrt((spread**2).sum() / free)) if free > 0 else 0.0
    if not free:
        notes.append("three sizes per budget leave no residuals, so there are no intervals; run four or more")
    law = law_of(good, irreducible)
    drawn = _bootstrap(good, law, irreducible, draws if free > 0 else 0, seed)
    if free > 0 and len(drawn) < 0.8 * draws:
        notes.append(
            f"in {1 - len(drawn) / draws:.0%} of the bootstrap fewer than two budgets had a minimum: flat curves"
        )
    joint, why = _joint(points)
    return Fit(budgets, law, drawn, joint, why, noise, notes)


def law_of(budgets: Sequence[Budget], irreducible: float) -> Law:
    """The law through the minima of two or more budgets."""
    flops = [budget.flops for budget in budgets]
    losses = [budget.loss for budget in budgets]
    return Law(
        tokens=power(flops, [budget.tokens for budget in budgets]),
        parameters=power(flops, [budget.parameters for budget in budgets]),
        loss=LossLaw(irreducible, power(flops, np.maximum(np.array(losses) - irreducible, 1e-9))),
        fitted=_with_fitted_floor(flops, losses),
    )


def _with_fitted_floor(flops: Sequence[float], losses: Sequence[float]) -> LossLaw | None:
    """The law with the best-fitting irreducible loss; None for two budgets, which any value fits."""
    if len(flops) < 3:
        return None
    x, y = np.log(flops), np.asarray(losses)
    floors = np.linspace(0, 0.999 * y.min(), 400)[:, None]
    logs = np.log(y - floors)  # (floors, budgets)
    slopes = (logs @ (x - x.mean())) / ((x - x.mean()) ** 2).sum()
    starts = logs.mean(axis=1) - slopes * x.mean()
    off = floors + np.exp(starts[:, None] + slopes[:, None] * x) - y
    best = int((off**2).sum(axis=1).argmin())
    return LossLaw(float(floors[best, 0]), Power(float(np.exp(starts[best])), float(slopes[best])))


def _bootstrap(budgets: Sequence[Budget], law: Law, irreducible: float, draws: int, seed: int) -> list[Law]:
    """Laws of the same runs with resampled residuals, scaled up for the degrees of freedom of small budgets."""
    random = np.random.default_rng(seed)
    pool = np.concatenate(
        [budget.residuals() * math.sqrt(len(budget.points) / max(len(budget.points) - 3, 1)) for budget in budgets]
    )
    laws = []
    for _ in range(draws):
        again = []
        for budget in budgets:
            assert budget.over_tokens is not None
            smooth = budget.over_tokens(np.log([point.tokens for point in budget.points]))
            losses = smooth + random.choice(pool, len(smooth))
            moved = [replace(point, loss=float(loss)) for point, loss in zip(budget.points, losses, strict=True)]
            again.append(_budget(moved))
        good = [budget for budget in again if not budget.why and budget.loss > irreducible]
        if len(good) >= 2:
            laws.append(law_of(good, irreducible))
    return laws


def _joint(points: Sequence[Point]) -> tuple[Joint | None, str]:
    if len(points) < 7:
        return None, f"{len(points)} runs are too few for its five parameters"
    n, d = np.log([point.parameters for point in points]), np.log([point.tokens for point in points])
    loss = np.array([point.loss for point in points])
    n0, d0 = n.mean(), d.mean()

    def residuals(at: np.ndarray) -> np.ndarray:
        e, a, alpha, b, beta = at
        parts = np.stack([np.full_like(n, e), a - np.exp(alpha) * (n - n0), b - np.exp(beta) * (d - d0)])
        return np.logaddexp.reduce(parts) - np.log(loss)

    starts = [
        [math.log(floor * loss.min()), *terms]
        for floor in (0.2, 0.7)
        for alpha in (0.2, 0.5)
        for beta in (0.2, 0.5)
        for half in [math.log(max(loss.mean() - floor * loss.min(), 1e-3) / 2)]
        for terms in [(half, math.log(alpha), half, math.log(beta))]
    ]
    (e, a, alpha, b, beta), _ = huber_fit(residuals, starts, _HUBER)
    alpha, beta = math.exp(alpha), math.exp(beta)
    if not (1e-3 < alpha < 3 and 1e-3 < beta < 3):
        return None, "one of its exponents diverged: the runs do not separate the effects of size and tokens"
    pairs = math.exp(float(np.mean(np.log([point.flops / point.parameters / point.tokens for point in points]))))
    return Joint(math.exp(e), math.exp(a + alpha * n0), alpha, math.exp(b + beta * d0), beta, pairs), ""


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float] | None:
    """The central interval that holds a `share` of the values; None for fewer than 20."""
    if len(values) < 20:
        return None
    low, high = np.quantile(np.asarray(values, float), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
