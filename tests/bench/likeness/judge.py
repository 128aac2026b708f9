"""Two groups of connections: single features by Kolmogorov and Smirnov, all together by a random forest."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.likeness.features import Features

_TREES, _FOLDS, _RESAMPLED = 200, 5, 500


@dataclass(frozen=True)
class Verdict:
    """``auc``: 0.5 is a guess, 1 is certainty; with its 95 % interval. ``ranked``: the features that told most."""

    auc: float
    low: float
    high: float
    ranked: list[tuple[str, float]]


def forest(one: Sequence[Features], other: Sequence[Features], seed: int = 1) -> Verdict:
    """Every connection judged by trees that have not seen it."""
    import numpy
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    names = sorted(one[0])
    rows = numpy.array([[each[name] for name in names] for each in (*one, *other)])
    sides = numpy.array([0] * len(one) + [1] * len(other))
    trees = RandomForestClassifier(_TREES, random_state=seed, n_jobs=1)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    guessed = cross_val_predict(trees, rows, sides, cv=folds, method="predict_proba")[:, 1]
    chance, scores = random.Random(seed), []
    for _ in range(_RESAMPLED):
        drawn = [chance.randrange(len(sides)) for _ in sides]
        if len(set(sides[drawn])) == 2:
            scores.append(roc_auc_score(sides[drawn], guessed[drawn]))
    scores.sort()
    trees.fit(rows, sides)
    ranked = sorted(zip(names, trees.feature_importances_, strict=True), key=lambda each: -each[1])
    auc = float(roc_auc_score(sides, guessed))
    return Verdict(auc, scores[len(scores) // 40], scores[-1 - len(scores) // 40], ranked[:6])


def single(one: Sequence[Features], other: Sequence[Features]) -> dict[str, tuple[float, float, float]]:
    """Of each feature: the medians of both groups, and the probability that chance alone differs as much."""
    from scipy.stats import ks_2samp

    found = {}
    for name in one[0]:
        first, second = sorted(each[name] for each in one), sorted(each[name] for each in other)
        medians = first[len(first) // 2], second[len(second) // 2]
        found[name] = (*medians, float(ks_2samp(first, second).pvalue))
    return found


def words(group: Sequence[dict[str, str]], name: str) -> str:
    """How often which value occurs, the most frequent first."""
    counted = Counter(each[name] for each in group).most_common(4)
    return "; ".join(f"{count} x {value}" for value, count in counted)
