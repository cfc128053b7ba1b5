"""Measures of images against SciPy, brute force, and what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg

from fortifai.data.images import digits
from fortifai.errors import InputError
from fortifai.evals import images


def normal(n: int, f: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, f))


def test_spread_is_the_standard_deviation_of_all_entries():
    codes = normal(40, 5, 0).astype(np.float32)
    assert images.spread(codes) == pytest.approx(float(np.std(codes.astype(np.float64))), rel=1e-12)


def test_the_standard_error_of_the_spread():
    # codes whose entries go together, so that images, not entries, are what is independent
    rng = np.random.default_rng(1)
    draws = [
        rng.normal(size=(200, 1)) * np.ones(6) + 0.3 * rng.normal(size=(200, 6))
        for _ in range(1500)
    ]
    found = np.array([images.spread(d) for d in draws])
    told = np.mean([images.spread_stderr(d) for d in draws])
    # the spread of 1,500 standard deviations is known to 2 %; the delta method errs by 1 / 200
    assert told == pytest.approx(found.std(), rel=0.08)


def test_frechet_of_exact_moments():
    # samples whose moments are exactly what is asked for
    x = normal(300, 3, 2)
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    a = x * np.array([1.0, 2.0, 3.0])
    b = x * np.array([2.0, 2.0, 1.0]) + np.array([1.0, 0.0, -2.0])
    # diagonal Gaussians: |shift|^2 + sum (s - t)^2
    assert images.frechet(a, b) == pytest.approx(5 + (1 + 0 + 4), rel=1e-10)
    assert images.frechet(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_is_the_formula_with_scipys_root():
    mix = normal(4, 4, 3)
    a, b = normal(60, 4, 4) @ mix, normal(90, 4, 5) + 0.5
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(ca @ cb).real
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(ca + cb - 2 * root)
    assert images.frechet(a, b) == pytest.approx(expected, rel=1e-8)


def by_hand(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    def covered(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(manifold - m, axis=1))[k] for m in manifold]
        inside = [
            any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True))
            for p in points
        ]
        return float(np.mean(inside))

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_definition(k):
    real, generated = normal(70, 3, 6), 0.7 * normal(55, 3, 7) + 0.5
    assert images.precision_recall(real, generated, k) == pytest.approx(by_hand(real, generated, k))


def test_precision_and_recall_in_blocks():
    real, generated = normal(1100, 2, 8), normal(700, 2, 9) + 1.0
    assert images.precision_recall(real, generated) == pytest.approx(by_hand(real, generated, 3))


def test_precision_and_recall_of_known_sets():
    one, other = normal(300, 4, 10), normal(300, 4, 11) + 100.0
    assert images.precision_recall(one, one) == (1.0, 1.0)
    assert images.precision_recall(one, other) == (0.0, 0.0)
    # one mode of two: what is drawn is real, half of what is real is drawn
    both = np.concatenate([one, other])
    precision, recall = images.precision_recall(both, normal(600, 4, 12))
    assert precision > 0.85
    assert 0.42 < recall <= 0.5


@pytest.fixture(scope="module")
def classifier():
    found = digits()
    order = np.random.default_rng(0).permutation(len(found.pixels))
    pixels, labels = found.pixels[order], found.labels[order]
    return images.fit_classifier(pixels[:1400], labels[:1400], seed=0), pixels, labels


def test_the_classifier_knows_digits_that_it_has_not_seen(classifier, tmp_path):
    model, pixels, labels = classifier
    p = model.probabilities(pixels[1400:])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert (p.argmax(1) == labels[1400:]).mean() >= 0.95
    model.save(tmp_path / "classifier")
    loaded = images.Classifier.load(tmp_path / "classifier")
    np.testing.assert_array_equal(loaded.probabilities(pixels[1400:]), p)
    assert {path.suffix for path in (tmp_path / "classifier").iterdir()} == {".safetensors"}


def test_the_forward_pass_is_scikit_learns():
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(3)
    x, y = rng.random((60, 4, 4)), rng.integers(0, 3, 60)
    network = MLPClassifier((7,), tol=1.0, random_state=0).fit(x.reshape(60, -1), y)
    ours = images.Classifier(tuple(network.coefs_), tuple(network.intercepts_))
    np.testing.assert_allclose(
        ours.probabilities(x), network.predict_proba(x.reshape(60, -1)), rtol=1e-9
    )


def test_entropy_and_certainty_of_known_predictions():
    p = np.eye(4)[[0, 0, 1, 2]] * 0.6 + 0.1
    # classes 0, 0, 1, 2: -1/2 log 1/2 - 2 * 1/4 log 1/4
    assert images.class_entropy(p) == pytest.approx(1.5 * math.log(2), rel=1e-12)
    assert images.certainty(p) == (pytest.approx(0.7), pytest.approx(0.0, abs=1e-15))
    assert images.class_entropy(np.eye(3)[[1, 1]]) == 0.0
    assert str(images.class_entropy(np.eye(3)[[1, 1]])) == "0.0"  # not -0.0
    uniform = np.eye(10)[np.arange(1000) % 10]
    assert images.class_entropy(uniform) == pytest.approx(math.log(10), rel=1e-12)


def test_the_standard_error_of_the_entropy():
    rng = np.random.default_rng(4)
    shares = [0.5, 0.3, 0.15, 0.05]
    found, told = [], []
    for _ in range(2000):
        p = np.eye(4)[rng.choice(4, 400, p=shares)]
        found.append(images.class_entropy(p))
        told.append(images.class_entropy_stderr(p))
    # the spread of 2,000 is known to 1.6 %; the delta method errs by about 1 / 400
    assert np.mean(told) == pytest.approx(np.std(found), rel=0.06)


def test_wrong_input_is_told():
    with pytest.raises(InputError, match="at least two, and finite"):
        images.spread(np.zeros((1, 3)))
    with pytest.raises(InputError, match="finite"):
        images.frechet(np.full((5, 2), np.nan), np.zeros((5, 2)))
    with pytest.raises(InputError, match="codes of 2 and of 3 numbers"):
        images.frechet(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="3 real and 9 generated codes are too few for k = 3"):
        images.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(InputError, match="5 images came with 4 labels"):
        images.fit_classifier(np.zeros((5, 2, 2)), np.zeros(4), seed=0)
    with pytest.raises(InputError, match="needs three or more"):
        images.fit_classifier(np.zeros((4, 2, 2)), np.array([0, 1, 0, 1]), seed=0)
    with pytest.raises(InputError, match=r"must be \(n, height, width\)"):
        images.fit_classifier(np.zeros((4, 4)), np.zeros(4), seed=0)
