"""Whether wording alone tells true from false: a classifier of words and lengths, cross-validated.

What it finds, a language model that never saw the text finds too: "did not", "unlike", a habit of
writing true sentences longer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from fortifai.data.questions import Question
from fortifai.stats.sample import Share, share

FOLDS = 5


def wording_share(questions: Sequence[Question], *, seed: int = 0) -> Share:
    """How often a classifier that has not seen a question tells its true sentence.

    Logistic regression on the difference of the two sentences' counts of words and pairs of words,
    their lengths and numbers of digits, without an intercept: it chooses between the two, as the KR
    test does. Each of five folds is judged by what the other four taught. Two questions that
    exchange the same words, (a, b) and (b, a), are in one fold; apart, each would teach the wrong
    answer to the other. Fewer than 10 questions teach nothing and count as chance.
    """
    if len(questions) < 2 * FOLDS:
        return share([0.5] * max(1, len(questions)))
    from sklearn.linear_model import LogisticRegression

    x = _differences(questions)
    fold = _folds(questions, seed)
    right = np.full(len(questions), 0.5)
    for k in range(FOLDS):
        here, there = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        if not len(here) or not len(there):
            continue
        # every difference in both directions: half of the training set is "the first is true"
        sign = np.where(np.arange(len(there)) % 2, 1.0, -1.0)
        flipped = x[there].multiply(sign[:, None]).tocsr()
        model = LogisticRegression(fit_intercept=False, C=0.1, max_iter=1000)
        model.fit(flipped, sign)
        right[here] = (np.sign(model.decision_function(x[here])) + 1) / 2
    return share(right)


def _differences(questions: Sequence[Question]) -> Any:
    """(n, features) sparse: features of the true sentence less those of the false one."""
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    count = CountVectorizer(ngram_range=(1, 2), min_df=3, token_pattern=r"(?u)\b\w+\b")
    texts = [side for q in questions for side in (q.true, q.false)]
    try:
        words = count.fit_transform(texts).astype(np.float64)
    except ValueError:  # no word stands in three sentences
        words = sparse.csr_matrix((len(texts), 1))
    sizes = np.array([[len(t), len(t.split()), sum(c.isdigit() for c in t)] for t in texts], float)
    sizes = sizes[::2] - sizes[1::2]
    scale = np.abs(sizes).max(0)
    sizes /= np.where(scale > 0, scale, 1.0)
    return sparse.hstack([words[::2] - words[1::2], sparse.csr_matrix(sizes)]).tocsr()


def _folds(questions: Sequence[Question], seed: int) -> np.ndarray:
    """(n,) fold of each question; equal for those that exchange the same words."""
    keys = [frozenset((_only(q.true, q.false), _only(q.false, q.true))) for q in questions]
    different = list(dict.fromkeys(keys))
    random.Random(seed).shuffle(different)
    number = {key: i % FOLDS for i, key in enumerate(different)}
    return np.array([number[key] for key in keys])


def _only(one: str, other: str) -> tuple[str, ...]:
    """The words that only the first text has."""
    rest = set(other.split())
    return tuple(w for w in one.split() if w not in rest)
