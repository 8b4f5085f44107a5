"""Which option every layer takes under one budget: a multiple-choice knapsack, solved exactly.

QuantFace, arXiv 2506.00820:

    min  sum z[l, c] * errors[l, c]    over z in {0, 1}, one option a layer
    s.t. sum z[l, c] * costs[l, c] <= budget

Errors and costs are float64 [layers, options]. An option whose error is not finite is one that the layer does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vqc.errors import PipelineError

Table = NDArray[np.float64]


def total(table: Table, chosen: Sequence[int]) -> float:
    """The sum over layers of a table's entries at their chosen options."""
    return float(sum(table[layer, option] for layer, option in enumerate(chosen)))


def least(errors: Table, costs: Table) -> float:
    """The smallest cost that any choice has."""
    return float(np.where(np.isfinite(errors), costs, np.inf).min(1).sum())


def lower_bound(errors: Table, costs: Table, budget: float) -> float:
    """The Lagrangian bound: no choice within the budget has a smaller sum of errors.

    max over lambda >= 0 of sum_l min_c (errors + lambda * costs) - lambda * budget, a concave function of straight
    pieces that end where a layer changes its option; bisection of the slope's sign finds its top.
    """
    rows = np.arange(len(costs))

    def dual(factor: float) -> tuple[float, float]:
        best = (errors + factor * costs).argmin(1)
        over = float(costs[rows, best].sum() - budget)
        return float(errors[rows, best].sum()) + factor * over, over

    value, slope = dual(0.0)
    if slope <= 0:
        return value
    low, high = 0.0, 1.0
    for _ in range(200):  # beyond the last step every layer is at its cheapest, where the slope is not positive
        if dual(high)[1] <= 0:
            break
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if dual(middle)[1] > 0 else (low, middle)
    return max(dual(low)[0], dual(high)[0])


def solve(errors: Table, costs: Table, budget: float) -> list[int]:
    """The option of every layer with the least sum of errors within the budget, by SciPy's HiGHS.

    Raises PipelineError when SciPy is missing, a layer has no option, or the budget cannot be met.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, eye, kron
    except ImportError as e:
        raise PipelineError("bits cannot be allocated without SciPy", why=str(e),
                            way_out="pip install vqc[allocate]") from e  # fmt: skip
    layers, options = errors.shape
    usable = np.isfinite(errors)
    if not usable.any(1).all():
        raise PipelineError(f"layer number {int(np.argmin(usable.any(1)))} has no option with a finite error",
                            way_out="give more bits to choose from")  # fmt: skip
    if least(errors, costs) > budget:
        raise PipelineError(f"a budget of {budget:.6g} cannot be met",
                            why=f"the least that can be reached is {least(errors, costs):.6g}")  # fmt: skip
    # HiGHS stops at an absolute gap of 1e-6 and allows rows to be missed by 1e-7: both have to mean little.
    scale = lower_bound(errors, costs, budget) or float(errors[usable].max()) or 1.0
    unit = max(float(np.abs(costs).max()), abs(budget)) or 1.0
    one_each = LinearConstraint(csr_array(kron(eye(layers), np.ones((1, options)))), 1, 1)
    within = LinearConstraint(costs.reshape(1, -1) / unit, -np.inf, budget / unit)
    found = milp(np.where(usable, errors / scale, 0.0).ravel(), integrality=np.ones(errors.size),
                 bounds=Bounds(0, usable.astype(float).ravel()), constraints=[one_each, within],
                 options={"mip_rel_gap": 0.0})  # fmt: skip
    if found.x is None:
        raise PipelineError("the integer programme was not solved", why=found.message)
    return [int(o) for o in found.x.reshape(layers, options).argmax(1)]


def swaps(errors: Table, costs: Table, budget: float, chosen: Sequence[int]) -> Iterator[list[int]]:
    """Choices within the budget in which one layer has its next dearer option, the most promising first.

    Promising is a layer whose error should fall most for what it costs. Where the budget has no room, other layers take
    cheaper options, those first whose error should rise least for what they free.
    """
    raises = []
    for layer, now in enumerate(chosen):
        dearer = [o for o in _options(errors, layer) if costs[layer, o] > costs[layer, now]
                  and errors[layer, o] < errors[layer, now]]  # fmt: skip
        if dearer:
            to = min(dearer, key=lambda o: costs[layer, o])
            rate = (errors[layer, now] - errors[layer, to]) / (costs[layer, to] - costs[layer, now])
            raises.append((-rate, layer, to))
    for _, layer, to in sorted(raises):
        trial = [*chosen]
        trial[layer] = to
        if _lower(trial, layer, errors, costs, budget):
            yield trial


def _lower(trial: list[int], kept: int, errors: Table, costs: Table, budget: float) -> bool:
    """Give other layers than `kept` cheaper options, in place, until the budget holds; False if it never does."""
    while total(costs, trial) > budget:
        found = [((errors[layer, o] - errors[layer, now]) / (costs[layer, now] - costs[layer, o]), layer, o)
                 for layer, now in enumerate(trial) if layer != kept
                 for o in _options(errors, layer) if costs[layer, o] < costs[layer, now]]  # fmt: skip
        if not found:
            return False
        _, layer, option = min(found)
        trial[layer] = option
    return True


def _options(errors: Table, layer: int) -> list[int]:
    return [o for o in range(errors.shape[1]) if np.isfinite(errors[layer, o])]
