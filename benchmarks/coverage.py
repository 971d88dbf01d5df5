"""Do the 95 % intervals over held-out problems cover the truth in 95 of 100 evaluations? Simulated, against older methods.

A population of problems has a mean accuracy p; a problem's own accuracy is drawn from a Beta distribution with that mean, from
problems that are all right or all wrong (concentration 0) to problems that are all alike (infinite). An evaluation meets n of
them with k samples each. A change is that of the same problems before and after. What an interval sees of n problems are
counts of outcomes, which are drawn as such; with a single sample accuracies from 1 to 99 %, and changes that only gain, are
reckoned exactly. pass@k and maj@k, and their changes, are simulated likewise: the number of right samples decides a problem's
value, for maj@k with one wrong answer that all give, or with as many as there are wrong samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from slimrl.measures import Tally, majority_at_k, pass_at_k, sizes
from slimrl.statistics import ADDED_TO_CHANGE, ADDED_TO_MEAN, interval_of_moments

Array = NDArray[np.float64]
Method = Callable[[int, int, Array, Array], tuple[Array, Array]]
"""Problems, samples, means and variances (divisor n) of evaluations -> lower and upper ends."""
Z = float(stats.norm.ppf(0.975))
PROBLEMS = (30, 50, 100, 400, 1319)
SAMPLES = (2, 4, 8, 32)
RATES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
CONCENTRATIONS = (0.0, 0.5, 2.0, 10.0, math.inf)
PAIRS = (
    (0.01, 0.01), (0.5, 0.5), (0.97, 0.97), (0.01, 0.012), (0.01, 0.02), (0.01, 0.06), (0.01, 0.1), (0.1, 0.2), (0.3, 0.35),
    (0.5, 0.9), (0.9, 0.95), (0.99, 0.9), (0.01, 0.99),
)  # fmt: skip
"""Accuracy before and after."""
CHANGES = ("alike", "independent", "a tenth", "a hundredth")
"""The better problems before are the better after; before and after have nothing to do with each other; a tenth, or a hundredth
of the problems changes, the others give the same answers."""
AT_K: dict[str, Callable[[int, int, int], float]] = {
    "pass@k": pass_at_k,
    "maj@k, one wrong answer": lambda samples, right, k: majority_at_k(Tally(right, (samples - right,)), k),
    "maj@k, all wrong answers differ": lambda samples, right, k: majority_at_k(
        Tally(right, (1,) * (samples - right)), k
    ),
}
"""A problem's value by samples, right samples and k."""
WORST = 12
"""Cells of the worst coverage that are simulated again: the least of many simulations is too low by chance."""


@dataclass(frozen=True)
class Cell:
    """One kind of evaluation, and how often the method's interval holds the truth."""

    kind: str
    method: str
    problems: int
    samples: int
    rates: tuple[float, ...]
    concentration: str
    coverage: float
    width: float


def student(lowest: float, highest: float) -> Method:
    def ends(n: int, _k: int, mean: Array, variance: Array) -> tuple[Array, Array]:
        half = float(stats.t.ppf(0.975, n - 1)) * np.sqrt(variance / (n - 1))
        return np.maximum(lowest, mean - half), np.minimum(highest, mean + half)

    return ends


def added(count: float, lowest: float, highest: float) -> Method:
    return lambda n, _k, mean, variance: interval_of_moments(n, mean, variance, lowest, highest, added=count)


def effective(n: int, k: int, mean: Array, variance: Array) -> Array:
    """Answers that would say as much were they independent: by the design effect, between n and n k."""
    unbiased = variance * n / (n - 1)
    known = unbiased > 0
    return np.where(known, n * np.clip(mean * (1 - mean) / np.where(known, unbiased, 1.0), 1, k), n)


def wilson(n: int, k: int, mean: Array, variance: Array) -> tuple[Array, Array]:
    size = effective(n, k, mean, variance)
    centre = (mean + Z * Z / 2 / size) / (1 + Z * Z / size)
    half = Z / (1 + Z * Z / size) * np.sqrt(mean * (1 - mean) / size + Z * Z / 4 / size**2)
    return centre - half, centre + half


def korn_graubard(n: int, k: int, mean: Array, variance: Array) -> tuple[Array, Array]:
    """Clopper and Pearson's with the effective size (Survey Methodology 24, 1998)."""
    size = effective(n, k, mean, variance) * float((stats.t.ppf(0.975, n * k - 1) / stats.t.ppf(0.975, n - 1)) ** 2)
    right, wrong = np.maximum(size * mean, 1e-12), np.maximum(size * (1 - mean), 1e-12)
    low = np.where(right > 1e-9, special.betaincinv(right, wrong + 1, 0.025), 0.0)
    return low, np.where(wrong > 1e-9, special.betaincinv(right + 1, wrong, 0.975), 1.0)


def agresti_min(n: int, _k: int, mean: Array, variance: Array) -> tuple[Array, Array]:
    """Half an answer added to each of the four cells of before and after (Statistics in Medicine 24, 2005)."""
    total = n + 2
    centre = n * mean / total
    half = Z * np.sqrt(np.maximum(n * (variance + mean**2) + 1 - total * centre**2, 0)) / total
    return centre - half, centre + half


OURS = "Student, problems added"
MEANS: dict[str, Method] = {
    OURS: added(ADDED_TO_MEAN, 0.0, 1.0),
    "Student": student(0.0, 1.0),
    "Wilson, effective size": wilson,
    "Korn and Graubard": korn_graubard,
    "1 added": added(1.0, 0.0, 1.0),
    "1.92 added": added(Z * Z / 2, 0.0, 1.0),
}
DIFFERENCES: dict[str, Method] = {
    OURS: added(ADDED_TO_CHANGE, -1.0, 1.0),
    "Student": student(-1.0, 1.0),
    "Agresti and Min": agresti_min,
    "0.5 added": added(0.5, -1.0, 1.0),
    "1 added": added(1.0, -1.0, 1.0),
    "1.5 added": added(1.5, -1.0, 1.0),
}


def right_answers(k: int, p: float, concentration: float) -> Array:
    """[k + 1] chances of 0 to k right answers to a problem."""
    if concentration == 0:
        return np.array([1 - p, *[0.0] * (k - 1), p])
    if concentration == math.inf:
        return np.asarray(stats.binom.pmf(np.arange(k + 1), k, p))
    return np.asarray(stats.betabinom.pmf(np.arange(k + 1), k, concentration * p, concentration * (1 - p)))


def accuracies(p: float, concentration: float, count: int = 400) -> Array:
    """[count] equally likely accuracies of problems, in order."""
    u = (np.arange(count) + 0.5) / count
    if concentration == 0:
        return np.asarray(u > 1 - p, dtype=np.float64)
    if concentration == math.inf:
        return np.full(count, p)
    return np.clip(np.nan_to_num(stats.beta.ppf(u, concentration * p, concentration * (1 - p))), 0, 1)


def binomials(k: int, rates: Array) -> Array:
    """[count, k + 1] chances of 0 to k right answers at each accuracy."""
    x = np.arange(k + 1)
    return np.asarray(special.comb(k, x) * rates[:, None] ** x * (1 - rates[:, None]) ** (k - x))


def joint(k: int, before: float, after: float, concentration: float, kind: str) -> Array:
    """[k + 1, k + 1] chances of a problem's right answers before and after."""
    if kind == "alike":
        first, second = (binomials(k, accuracies(p, concentration)) for p in (before, after))
        return np.asarray(first.T @ second / len(first))
    first, second = (right_answers(k, p, concentration) for p in (before, after))
    share = {"independent": 1.0, "a tenth": 0.1, "a hundredth": 0.01}[kind]
    return share * np.outer(first, second) + (1 - share) * np.diag(first)


def changes(k: int, before: float, after: float, concentration: float, kind: str) -> Array:
    """[2 k + 1] chances of a problem's change by -k to k right answers."""
    both = joint(k, before, after, concentration, kind)
    return np.array([np.trace(both, offset) for offset in range(-k, k + 1)])


def means() -> Iterator[tuple[int, int, tuple[float, ...], float, Array, Array]]:
    """Problems, samples, rates, concentration, values and their chances of everything simulated of a mean."""
    for k in SAMPLES:
        for concentration in CONCENTRATIONS:
            for p in RATES:
                for n in PROBLEMS:
                    yield n, k, (p,), concentration, np.arange(k + 1) / k, right_answers(k, p, concentration)


def differences() -> Iterator[tuple[int, int, tuple[float, ...], float, Array, Array, str]]:
    """The same of a change, with its kind."""
    for k in (1, *SAMPLES):
        for concentration in CONCENTRATIONS if k > 1 else (0.0, math.inf):
            for pair in PAIRS:
                for kind in CHANGES:
                    chances = changes(k, *pair, concentration, kind)
                    for n in PROBLEMS:
                        yield n, k, pair, concentration, np.arange(-k, k + 1) / k, chances, kind


def covered(
    draws: np.random.Generator, repeats: int, n: int, k: int, values: Array, chances: Array, methods: dict[str, Method]
) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of each method over `repeats` evaluations."""
    chances = np.maximum(chances, 0) / np.maximum(chances, 0).sum()
    truth = float(chances @ values)
    counts = draws.multinomial(n, chances, size=repeats)
    mean = counts @ values / n
    variance = np.maximum(counts @ values**2 / n - mean**2, 0)
    found = {}
    for name, method in methods.items():
        low, high = method(n, k, mean, variance)
        inside = (low <= truth + 1e-12) & (truth <= high + 1e-12)
        found[name] = float(inside.mean()), float(np.mean(high - low))
    return found


def exact_worst(method: Method, n: int, least: float = 0.01) -> tuple[float, float]:
    """Least coverage over p from `least` to 99 %, and where: just beyond some interval's end.

    p is a single sample's accuracy, or with a method for changes the share of problems gained where none is lost.
    """
    right = np.arange(n + 1)
    low, high = method(n, 1, right / n, right / n * (1 - right / n))
    p = np.concatenate([low - 1e-9, high + 1e-9, np.arange(1, 100) / 100])
    p = p[(p >= least) & (p <= 0.99)]
    first, last = np.searchsorted(high, p, "left"), np.searchsorted(low, p, "right") - 1
    coverage = special.bdtr(last, n, p) - np.where(first > 0, special.bdtr(first - 1.0, n, p), 0.0)
    return float(coverage.min()), float(p[coverage.argmin()])


def simulate(repeats: int, seed: int) -> list[Cell]:
    draws = np.random.default_rng(seed)
    cells = []
    for n, k, rates, concentration, values, chances in means():
        for name, result in covered(draws, repeats, n, k, values, chances, MEANS).items():
            cells.append(Cell("accuracy", name, n, k, rates, str(concentration), *result))
    for n, k, rates, concentration, values, chances, kind in differences():
        for name, result in covered(draws, repeats, n, k, values, chances, DIFFERENCES).items():
            cells.append(Cell(f"change, {kind}", name, n, k, rates, str(concentration), *result))
    return cells


def again(cell: Cell, repeats: int, seed: int) -> Cell:
    """The same cell with draws of its own."""
    concentration = float(cell.concentration)
    kind = cell.kind.removeprefix("change, ")
    if cell.kind == "accuracy":
        values, chances = (
            np.arange(cell.samples + 1) / cell.samples,
            right_answers(cell.samples, cell.rates[0], concentration),
        )
    else:
        values = np.arange(-cell.samples, cell.samples + 1) / cell.samples
        chances = changes(cell.samples, cell.rates[0], cell.rates[1], concentration, kind)
    methods = {cell.method: (MEANS if cell.kind == "accuracy" else DIFFERENCES)[cell.method]}
    draws = np.random.default_rng([seed, cell.problems, cell.samples])
    result = covered(draws, repeats, cell.problems, cell.samples, values, chances, methods)[cell.method]
    return Cell(cell.kind, cell.method, cell.problems, cell.samples, cell.rates, cell.concentration, *result)


@dataclass(frozen=True)
class AtK:
    """One kind of evaluation at k, or of its change where there are two rates."""

    of: str
    k: int
    samples: int
    problems: int
    rates: tuple[float, ...]
    concentration: float
    kind: str = ""
    """Of a change, one of CHANGES."""

    def coverage(self, draws: np.random.Generator, repeats: int) -> float:
        """Of our method, over so many evaluations."""
        values = np.array([AT_K[self.of](self.samples, right, self.k) for right in range(self.samples + 1)])
        if self.kind:
            chances = joint(self.samples, *self.rates, self.concentration, self.kind).ravel()
            values, method = np.subtract.outer(values, values).T.ravel(), DIFFERENCES[OURS]
        else:
            chances, method = right_answers(self.samples, *self.rates, self.concentration), MEANS[OURS]
        found = covered(draws, repeats, self.problems, self.samples, values, chances, {OURS: method})
        return found[OURS][0]


def evaluations_at_k() -> Iterator[AtK]:
    """Up to 32 samples of a mean, and 8 of a change; k = 1 is the accuracy, which is simulated above."""
    for of, concentration, n in itertools.product(AT_K, CONCENTRATIONS, PROBLEMS):
        for samples, p in itertools.product((4, 32), RATES):
            yield from (AtK(of, k, samples, n, (p,), concentration) for k in sizes(samples)[1:])
        for pair, kind in itertools.product(PAIRS, CHANGES):
            yield from (AtK(of, k, 8, n, pair, concentration, kind) for k in (2, 8))


def worst_at_k(repeats: int, seed: int) -> list[dict[str, object]]:
    """The least coverage of every measure and of its change; the cells that seem worst are simulated again."""
    draws = np.random.default_rng(seed)
    found = [(one.coverage(draws, repeats), one) for one in evaluations_at_k()]
    rows: list[dict[str, object]] = []
    for of, is_change in itertools.product(AT_K, (False, True)):
        own = sorted((c, i) for i, (c, one) in enumerate(found) if one.of == of and bool(one.kind) == is_change)
        again = [(found[i][1].coverage(draws, 20 * repeats), found[i][1]) for _, i in own[:WORST]]
        worst, at = min(again, key=lambda both: both[0])
        mean = float(np.mean([coverage for coverage, _ in own]))
        there = {key: str(value) if key == "concentration" else value for key, value in asdict(at).items()}
        what = f"change of {of}" if is_change else of
        rows.append({"of": what, "worst": worst, "at": there, "mean coverage": mean, "kinds of evaluation": len(own)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="evaluations of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("accuracy", "at-k"), help="one part; the other's results stay in the file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    if args.only != "at-k":
        results |= accuracy(args.repeats, args.seed)
    if args.only != "accuracy":
        rows = worst_at_k(args.repeats, args.seed)
        print("\n| of | worst coverage | there | mean coverage |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row['of']} | {row['worst']:.4f} | {row['at']} | {row['mean coverage']:.4f} |")
        results["at k"] = {"repeats": args.repeats, "simulated": rows}
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def accuracy(repeats: int, seed: int) -> dict[str, object]:
    """Accuracies and their changes, against older methods."""
    cells = simulate(repeats, seed)
    rows = []
    for what, methods in (("accuracy", MEANS), ("change", DIFFERENCES)):
        for name in methods:
            own = [cell for cell in cells if cell.kind.startswith(what) and cell.method == name]
            low = sorted(own, key=lambda cell: cell.coverage)[:WORST]
            worst = min((again(cell, 20 * repeats, seed + 1) for cell in low), key=lambda cell: cell.coverage)
            rows.append(
                {
                    "of": what,
                    "method": name,
                    "worst": worst.coverage,
                    "at": {
                        key: value for key, value in asdict(worst).items() if key not in ("method", "coverage", "width")
                    },
                    "mean coverage": float(np.mean([cell.coverage for cell in own])),
                    "mean width": float(np.mean([cell.width for cell in own])),
                    "kinds of evaluation": len(own),
                }
            )
    exact = []
    sizes = (*range(30, 200), *range(200, 1319, 50), 1319)
    for of, methods, least in (("accuracy", MEANS, 0.01), ("problems gained, none lost", DIFFERENCES, 0.0)):
        for name, method in methods.items():
            found = min((*exact_worst(method, n, least), n) for n in sizes)
            exact.append({"of": of, "method": name, "worst": found[0], "p": found[1], "problems": found[2]})
    print("| of | method | worst coverage | there | mean coverage | mean width |\n|---|---|---|---|---|---|")
    for row in rows:
        at = row["at"]
        assert isinstance(at, dict)
        there = (
            f"n {at['problems']}, k {at['samples']}, {at['rates']}, concentration {at['concentration']}, {at['kind']}"
        )
        print(
            f"| {row['of']} | {row['method']} | {row['worst']:.4f} | {there} | {row['mean coverage']:.4f} | "
            f"{row['mean width']:.4f} |"
        )
    print("\n| one sample, exact, any p | method | worst coverage | there |\n|---|---|---|---|")
    for line in exact:
        print(f"| {line['of']} | {line['method']} | {line['worst']:.4f} | n {line['problems']}, p {line['p']:.4f} |")
    return {"repeats": repeats, "simulated": rows, "one sample, exact": exact}


if __name__ == "__main__":
    main()
