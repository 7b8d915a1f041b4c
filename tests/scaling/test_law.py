"""Known laws are found again, and what no law can be drawn through is told in words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from herd.errors import DataError
from herd.scaling.curves import Power, huber_fit, parabola
from herd.scaling.forecast import Sigmoid, forecast, sigmoid
from herd.scaling.law import PAPER, budgets_of, fit, interval
from herd.scaling.points import Point

ALPHA, BETA, A, B, FLOOR = 0.34, 0.28, 30.0, 20.0, 0.55
BUDGETS = (1e12, 1e13, 1e14, 1e15)


def truth(parameters: float, tokens: float) -> float:
    return FLOOR + A * parameters**-ALPHA + B * tokens**-BETA


def ladder(budgets=BUDGETS, sizes=5, noise=0.0, spread=0.9, **more) -> list[Point]:
    """Runs of each budget around its best size, which follows from the truth by hand."""
    random = np.random.default_rng(0)
    found = []
    for budget in budgets:
        best = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budget / 6) ** (BETA / (ALPHA + BETA))
        for n in best * np.exp(np.linspace(-spread, spread, sizes)):
            d = budget / 6 / n
            loss = truth(n, d) + random.normal(0, noise)
            answers = {"task": (0.5 + 3 * (truth(n, d) - 0.6), math.nan)}
            found.append(Point(f"{budget:.0e}-{n:.0f}", n, d, budget, loss, 1e-3, 4096, answers=answers, **more))
    return found


def test_known_exponents_are_recovered_with_noise_and_lie_in_their_intervals():
    random, tokens, floor = np.random.default_rng(1), Power(3.0, 0.52), Power(40.0, -0.12)
    points = []
    for budget in BUDGETS:
        for off in (-1.0, -0.5, 0.0, 0.5, 1.0):
            d = tokens(budget) * math.exp(off)
            loss = FLOOR + floor(budget) + 0.03 * off**2 + random.normal(0, 0.001)
            points.append(Point("", budget / 6 / d, d, budget, loss))
    found = fit(points, draws=100)
    for curve, name, truth_ in ((found.law.tokens, "tokens", 0.52), (found.law.parameters, "parameters", 0.48)):
        low, high = interval([getattr(one, name).exponent for one in found.draws])
        assert low < truth_ < high and high - low < 0.05 and curve.exponent == pytest.approx(truth_, abs=0.02)
    assert found.law.tokens.factor == pytest.approx(3.0, rel=0.6)
    assert found.law.loss.power.exponent == pytest.approx(-0.12, abs=0.003)
    assert found.law.fitted.irreducible == pytest.approx(FLOOR, abs=0.08)


def test_a_law_of_real_losses_whose_curves_are_no_parabolas_is_near_the_truth():
    found = fit(ladder(noise=0.001), draws=20)
    assert found.law.tokens.exponent == pytest.approx(ALPHA / (ALPHA + BETA), abs=0.03)
    expected = truth(*found.joint.best(1e16))
    assert found.law.loss(1e16) == pytest.approx(expected, rel=0.02)
    assert found.law.fitted(1e16) == pytest.approx(expected, rel=0.03)


def test_the_robust_fit_holds_back_one_mistuned_run():
    points = ladder()
    spoiled = [*points[:7], Point(**vars(points[7]) | {"loss": points[7].loss * 1.1}), *points[8:]]
    joint = fit(spoiled, draws=20).joint
    assert joint.alpha == pytest.approx(ALPHA, abs=0.02) and joint.beta == pytest.approx(BETA, abs=0.02)
    assert joint.irreducible == pytest.approx(FLOOR, abs=0.05)
    assert joint.best(1e14)[0] * joint.best(1e14)[1] * 6 == pytest.approx(1e14)


def test_the_papers_law_gives_its_tokens_at_its_budget():
    tokens = PAPER(3.8e25)
    assert tokens == pytest.approx(16.3e12, rel=0.01)
    assert 3.8e25 / 6 / tokens == pytest.approx(389e9, rel=0.01)


def test_what_no_law_goes_through_is_told_in_words():
    points = ladder()
    with pytest.raises(DataError, match=r"(?s)a law needs two budgets.*1e\+12 FLOPs, 5 runs: good"):
        fit(points[:5])
    with pytest.raises(DataError, match="2 sizes, and a parabola needs three"):
        fit(ladder(sizes=2))
    with pytest.raises(DataError, match="is below irreducible=9"):
        fit(points, irreducible=9)
    bent = [Point(**vars(one) | {"loss": 5 - one.loss}) for one in points[:5]]
    found = fit([*bent, *points[5:]], draws=20)
    assert "not convex" in found.notes[0] and len(found.law.tokens.__dict__) == 2
    smallest = [Point(**vars(one) | {"name": "again"}) for one in (points[0], points[0])]
    one_sided = fit([*points[:2], *smallest, *points[5:]], draws=20)  # of the smallest budget only two sizes
    assert "1e+12 FLOPs are left out of the law: 2 sizes" in one_sided.notes[0]
    two = fit(ladder(budgets=BUDGETS[:2], sizes=3), draws=20)
    assert two.draws == [] and two.law.fitted is None
    assert "determine a law exactly" in two.notes[0] and "no intervals" in two.notes[1]


def test_budgets_are_told_apart_by_their_flops_though_they_differ_by_a_few_steps():
    near = [Point(**vars(one) | {"flops": one.flops * (1 + 0.02 * place)}) for place, one in enumerate(ladder()[:10])]
    assert [len(budget.points) for budget in budgets_of(near)] == [5, 5]


def test_a_parabola_is_exact_and_a_huber_fit_passes_by_an_outlier():
    x = np.array([1.0, 2.0, 4.0])
    assert parabola(x, 3 * (x - 2.5) ** 2 + 7).lowest == pytest.approx(2.5)
    y = 2 * x + 1 + np.array([0, 0, 0])
    x, y = np.append(x, [5.0, 6.0]), np.append(y, [11.0, 99.0])
    (slope, start), _ = huber_fit(lambda at: at[0] * x + at[1] - y, [[0.0, 0.0]], 0.01)
    assert (slope, start) == pytest.approx((2, 1), abs=0.02)
    assert Power(2.0, 0.5).inverse(Power(2.0, 0.5)(9.0)) == pytest.approx(9)


def test_a_benchmark_is_forecast_through_its_nats_and_told_where_nothing_says_how():
    curve = Sigmoid(0.25, 1.2, 0.2)

    def law(flops):
        return 7.0 - 0.15 * math.log(flops)

    points = [
        Point(f"{c:.0e}", 1, 1, c, 1.0, answers={"task": (law(c), float(curve(law(c))))})
        for c in np.geomspace(1e13, 1e18, 8)
    ]
    found = sigmoid(*np.array([one.answers["task"] for one in points]).T, 0.25)
    assert found.middle == pytest.approx(1.2, abs=0.01) and found.width == pytest.approx(0.2, abs=0.01)
    said = forecast("task", points[3:7], points, 1e18, chance=0.25, draws=100)
    assert said.nats[0] == pytest.approx(law(1e18), abs=0.15)
    assert said.accuracy[1] <= curve(law(1e18)) <= said.accuracy[2] + 0.05
    guessing = [Point(**vars(one) | {"answers": {"task": (one.answers["task"][0], 0.25)}}) for one in points]
    assert "hardly differ" in forecast("task", guessing[3:7], guessing, 1e18, chance=0.25, draws=50).why
    with pytest.raises(DataError, match="2 budgets were evaluated"):
        forecast("task", points[:2], points, 1e18, chance=0.25)
