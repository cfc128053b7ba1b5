from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, stats
from sklearn.datasets import load_digits

from fortifai.errors import InputError
from fortifai.images import distances as measures
from fortifai.images.distances import (
    Classifier,
    class_entropy,
    fit_classifier,
    frechet,
    mean_confidence,
    precision_recall,
    spread,
)

Floats = NDArray[np.float64]

EXACT = 1e-12


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- spread -----------------------------------------------------------------------------------


def test_spread_is_over_all_entries():
    # mean 2 and deviations -2 0 2 0; by column it would be 1 and 1, about 0 it would be sqrt(6)
    assert spread([[0, 2], [4, 2]])[0] == pytest.approx(math.sqrt(2), rel=EXACT)


def test_spread_of_float32_codes_is_computed_in_float64():
    codes = (1000 + 1e-2 * rng().normal(size=(5000, 2))).astype(np.float32)
    exact = codes.astype(np.float64).std()
    assert spread(codes)[0] == pytest.approx(exact, rel=1e-10)


def test_standard_error_of_the_spread_is_that_of_simulation():
    def draw(count: int, seed: int) -> Floats:
        # coordinates of one image depend on each other, of unequal scales, with heavy tails:
        # counting all entries as independent would give about 0.65 of the right answer
        generator = rng(seed)
        shared = generator.exponential(size=(count, 200, 1))
        return shared * np.array([1.0, 2, 3, 2]) + 0.5 * generator.normal(size=(count, 200, 4))

    simulated = np.std([spread(codes)[0] for codes in draw(4000, 1)])
    told = np.mean([spread(codes)[1] for codes in draw(500, 2)])
    # simulation knows it to 1 / sqrt(8000) = 1.1 %, heavy tails double that; at n = 200 the
    # delta method leaves out some percent
    assert told == pytest.approx(simulated, rel=0.1)


def test_standard_error_of_the_spread_is_that_of_the_bootstrap():
    codes = rng(3).gamma(2, size=(300, 3))
    draws = rng(4).integers(300, size=(3000, 300))
    # 3,000 draws know it to 1 / sqrt(6000) = 1.3 %
    resampled = np.std([spread(codes[i])[0] for i in draws])
    assert spread(codes)[1] == pytest.approx(resampled, rel=0.05)


def test_codes_that_are_all_equal_have_no_spread():
    codes = np.full((5, 3), 0.25)
    assert spread(codes) == (0, 0)


# --- Fréchet distance -------------------------------------------------------------------------


def exactly(mean: Floats, root: Floats, n: int, seed: int) -> Floats:
    """Samples whose mean and unbiased covariance root root^T hold exactly, up to rounding."""
    x = rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(x.T @ x / (n - 1)), x.T).T
    return mean + white @ root.T


def test_frechet_of_diagonal_covariances_in_closed_form():
    a, b = np.array([1.0, 2, 3, 0.5]), np.array([2.0, 2, 0.1, 4])
    shift = np.array([1.0, 0, -2, 3])
    x, y = exactly(np.zeros(4), np.diag(a), 50, 1), exactly(shift, np.diag(b), 70, 2)
    expected = (shift**2).sum() + ((a - b) ** 2).sum()
    assert frechet(x, y) == pytest.approx(expected, rel=1e-11)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-11)


def test_frechet_of_one_feature():
    x, y = exactly(np.zeros(1), np.eye(1), 9, 1), exactly(np.ones(1), 3 * np.eye(1), 8, 2)
    assert frechet(x, y) == pytest.approx(1 + 4, rel=1e-11)


def test_frechet_with_the_matrix_root_of_scipy():
    # covariances that do not commute: the trace of the product's root is then neither that of the
    # roots' product nor that of the entries' roots
    x = rng(1).normal(size=(60, 5)) @ rng(2).normal(size=(5, 5))
    y = rng(3).normal(size=(80, 5)) @ rng(4).normal(size=(5, 5)) + 1
    a, b = np.cov(x.T), np.cov(y.T)
    gap = x.mean(axis=0) - y.mean(axis=0)
    expected = gap @ gap + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_singular_covariances():
    # both in the same plane of a space of ten dimensions: what it is in the plane
    plane = np.linalg.qr(rng(5).normal(size=(10, 2)))[0]
    x, y = rng(6).normal(size=(2, 30, 2)) * [[[1, 2]], [[3, 1]]]
    inside = frechet(x, y)
    # eight lost directions, each up to 1e-8 of a trace of about 15
    assert frechet(x @ plane.T, y @ plane.T) == pytest.approx(inside, abs=1e-6)
    # fewer rows than features
    assert frechet(x[:4] @ plane.T, y[:5] @ plane.T) == pytest.approx(
        frechet(x[:4], y[:5]), abs=1e-6
    )
    # all generated ones alike: the trace of the other covariance is left
    still = np.zeros((30, 2))
    expected = np.trace(np.cov(x.T)) + (x.mean(axis=0) ** 2).sum()
    assert frechet(x, still) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_a_set_with_itself_is_0_and_never_below():
    x = rng(7).normal(size=(40, 6))
    # rounding of sums of order 10
    assert 0 <= frechet(x, x[::-1]) < 1e-12
    assert 0 <= frechet(1e6 + x, 1e6 + x) < 1e-8


def test_frechet_grows_as_samples_shrink():
    # as its docstring says: why only equal sizes compare
    x, y = rng(8).normal(size=(2, 3200, 10))
    assert frechet(x[:50], y[:50]) > 2 * frechet(x[:400], y[:400]) > 4 * frechet(x, y)


# --- precision and recall ---------------------------------------------------------------------


def brute(real: Floats, generated: Floats, k: int) -> tuple[float, float]:
    def on(points: Floats, manifold: Floats) -> float:
        radii = []
        for i, centre in enumerate(manifold):
            others = [math.dist(centre, x) for j, x in enumerate(manifold) if j != i]
            radii.append(sorted(others)[k - 1])
        inside = [
            any(math.dist(x, c) <= r for c, r in zip(manifold, radii, strict=True)) for x in points
        ]
        return float(np.mean(inside))

    return on(generated, real), on(real, generated)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "f"), [(40, 60, 2), (60, 40, 5), (7, 90, 1)])
def test_precision_and_recall_by_brute_force(k: int, n: int, m: int, f: int):
    real, generated = rng(n).normal(size=(n, f)), 0.7 + 0.6 * rng(m).normal(size=(m, f))
    expected = brute(real, generated, k)
    assert precision_recall(real, generated, k) == pytest.approx(expected, rel=EXACT)
    assert expected[0] != expected[1]  # or exchanging the two would go unseen


def test_precision_and_recall_of_a_set_with_itself():
    x = rng(1).normal(size=(700, 4))
    assert precision_recall(x, x[::-1]) == (1, 1)


def test_precision_and_recall_of_sets_apart():
    x = rng(2).normal(size=(600, 3))
    assert precision_recall(x, x + 50) == (0, 0)


def test_a_lost_mode_costs_recall_and_not_precision():
    far = np.array([100.0, 0.0])
    real = np.concatenate([rng(3).normal(size=(500, 2)), far + rng(4).normal(size=(500, 2))])
    generated = rng(5).normal(size=(1000, 2))
    precision, recall = precision_recall(real, generated)
    # points at the rim lie on no manifold: a few percent
    assert 0.9 < precision <= 1
    assert 0.45 < recall <= 0.5


def test_an_invented_mode_costs_precision_and_not_recall():
    far = np.array([100.0, 0.0])
    generated = np.concatenate([rng(3).normal(size=(500, 2)), far + rng(4).normal(size=(500, 2))])
    precision, recall = precision_recall(rng(5).normal(size=(1000, 2)), generated)
    assert 0.45 < precision <= 0.5
    assert 0.9 < recall <= 1


@pytest.mark.parametrize("features", [3, 7, 33, 64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_copies_are_found_even_where_balls_are_points(features: int, offset: float):
    # each point twice: the nearest neighbour is a copy, the radius is 0 and rounding decides; in
    # another order, as a matrix product rounds by place
    x = offset + np.repeat(rng(6).normal(size=(150, features)), 2, axis=0)
    assert precision_recall(x, x[rng(1).permutation(300)], k=1) == (1, 1)
    # and what is near, but no copy, is on no manifold
    assert precision_recall(x, x + 1e-3, k=1) == (0, 0)


def test_features_far_from_the_origin_lose_nothing():
    real, generated = rng(8).normal(size=(2, 300, 3))
    # 1e6^2 eats twelve of sixteen digits unless features are centred; a power of two adds exactly
    far = 2.0**20
    on_grid = [np.round(x * 2**20) / 2**20 for x in (real, generated)]
    assert precision_recall(*(x + far for x in on_grid)) == precision_recall(*on_grid)


# --- classifier -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    data = load_digits()
    order = rng(0).permutation(len(data.images))
    return (data.images[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def classifier(digits) -> Classifier:
    pixels, labels = digits
    return fit_classifier(pixels[:1200], labels[:1200], seed=0)


def test_classifier_is_right_on_held_out_digits(digits, classifier: Classifier):
    pixels, labels = digits
    p = classifier.probabilities(pixels[1200:])
    assert p.shape == (597, 10)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=EXACT)
    assert classifier.classes == tuple(range(10))
    assert (p.argmax(axis=1) == labels[1200:]).mean() >= 0.95


def test_classifier_is_less_sure_of_noise_than_of_digits(digits, classifier: Classifier):
    pixels, _ = digits
    noise = rng(1).permuted(pixels[1200:].reshape(597, -1), axis=1).reshape(597, 8, 8)
    sure, error = mean_confidence(classifier.probabilities(pixels[1200:]))
    unsure, other = mean_confidence(classifier.probabilities(noise))
    assert sure - unsure > 5 * math.hypot(error, other)


def test_classifier_that_was_saved_is_the_same(digits, classifier: Classifier, tmp_path: Path):
    classifier.save(tmp_path / "new" / "classifier")
    found = Classifier.load(tmp_path / "new" / "classifier")
    assert (found.classes, found.size) == (classifier.classes, (8, 8))
    pixels = digits[0][:300]
    np.testing.assert_array_equal(found.probabilities(pixels), classifier.probabilities(pixels))
    names = sorted(path.name for path in (tmp_path / "new" / "classifier").iterdir())
    assert names == ["classifier.json", "classifier.safetensors"]


@pytest.mark.parametrize("labels", [[3, 8], [2, 5, 7]])
def test_forward_pass_is_that_of_scikit_learn(digits, labels: list[int], monkeypatch):
    from sklearn.neural_network import MLPClassifier

    fitted = []
    original = MLPClassifier.fit

    def fit(self, *args):
        fitted.append(self)
        return original(self, *args)

    monkeypatch.setattr(MLPClassifier, "fit", fit)
    monkeypatch.setattr(measures, "_STEPS", 60)
    pixels, targets = digits
    some = np.isin(targets, labels)
    found = fit_classifier(pixels[some], targets[some], seed=1)
    assert found.classes == tuple(labels)
    p = found.probabilities(pixels[:200])
    expected = fitted[0].predict_proba(pixels[:200].reshape(200, -1))
    # scikit-learn's is in float32: seven digits, over sums of some hundred
    np.testing.assert_allclose(p, expected, atol=1e-5)
    assert (p[some[:200]].max(axis=1) > 0.6).mean() > 0.9


def test_same_seed_same_classifier(digits, monkeypatch):
    monkeypatch.setattr(measures, "_STEPS", 20)
    pixels, labels = digits[0][:100], digits[1][:100]
    one, same, other = (fit_classifier(pixels, labels, seed=s) for s in (2**40, 2**40, 5))
    np.testing.assert_array_equal(one.weights[0], same.weights[0])
    assert (one.weights[0] != other.weights[0]).any()


def test_images_are_moved_by_one_pixel_in_four_directions():
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    itself, down, up, right, left = measures._moved(image).reshape(5, 3, 3)
    np.testing.assert_array_equal(itself, image[0])
    np.testing.assert_array_equal(down, image[0][[0, 0, 1]])
    np.testing.assert_array_equal(up, image[0][[1, 2, 2]])
    np.testing.assert_array_equal(right, image[0][:, [0, 0, 1]])
    np.testing.assert_array_equal(left, image[0][:, [1, 2, 2]])


def test_images_moved_stay_in_the_order_of_their_labels(monkeypatch):
    # black or white images: were labels matched with the wrong ones, nothing could be learned
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    images = np.broadcast_to(labels[:, None, None], (8, 4, 3)).astype(np.float32)
    found = fit_classifier(images, labels + 7, seed=0)
    assert found.classes == (7, 8)
    np.testing.assert_array_equal(found.probabilities(images).argmax(axis=1), labels)


# --- classes ----------------------------------------------------------------------------------


def predicted(counts: list[int]) -> Floats:
    """Probabilities whose largest is 0.6, at class c as often as told."""
    p = np.full((sum(counts), len(counts)), 0.4 / (len(counts) - 1))
    p[np.arange(len(p)), np.repeat(np.arange(len(counts)), counts)] = 0.6
    return p


def test_entropy_of_classes():
    assert class_entropy(predicted([5, 5, 5, 5]))[0] == pytest.approx(math.log(4), rel=EXACT)
    assert class_entropy(predicted([2, 1, 1, 0]))[0] == pytest.approx(1.5 * math.log(2), rel=EXACT)
    alone = class_entropy(predicted([0, 7, 0]))[0]
    assert alone == 0
    assert math.copysign(1, alone) == 1  # not -0


@pytest.mark.long
def test_standard_error_of_entropy_is_that_of_simulation():
    shares, n = np.array([0.5, 0.25, 0.15, 0.1]), 400
    counts = rng(1).multinomial(n, shares, size=4000)
    simulated = np.std([stats.entropy(c / n) for c in counts])
    told = np.mean([class_entropy(predicted(c.tolist()))[1] for c in counts[:400]])
    # simulation knows it to 1.1 %; at n = 400 the delta method leaves out some percent
    assert told == pytest.approx(simulated, rel=0.06)


def test_standard_error_of_entropy_near_uniform_is_too_large_by_root_two():
    counts = rng(2).multinomial(1000, np.full(10, 0.1), size=3000)
    simulated = np.std([stats.entropy(c / 1000) for c in counts])
    told = [class_entropy(predicted(c.tolist()))[1] for c in counts[:300]]
    # the root of the mean square is sqrt(2) of the truth, as its docstring says; 300 draws of a
    # chi square of 9 degrees know it to some percent
    assert np.sqrt(np.mean(np.square(told))) / simulated == pytest.approx(math.sqrt(2), rel=0.08)


def test_standard_error_of_entropy_of_one_class_is_0():
    assert class_entropy(predicted([0, 7, 0]))[1] == 0
    # equal counts: rounding must not take the root of a negative number
    assert class_entropy(predicted([7] * 7))[1] == pytest.approx(0, abs=EXACT)


def test_certainty_is_the_mean_of_the_largest_probability():
    p = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9], [1.0, 0, 0]]
    mean, error = mean_confidence(p)
    assert mean == pytest.approx(0.8, rel=EXACT)
    # deviations -0.3 0 0.1 0.2
    assert error == pytest.approx(math.sqrt(0.14 / 3 / 4), rel=EXACT)


# --- wrong input ------------------------------------------------------------------------------

X = np.zeros((5, 2))
NAN = np.full((5, 2), math.nan)
DARK = np.zeros((4, 3, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spread(np.zeros((0, 2))), r"codes have shape \(0, 2\)"),
        (lambda: spread(np.zeros(3)), r"codes have shape \(3,\)"),
        (lambda: spread(NAN), "codes have NaN"),
        (lambda: spread([["a", "b"]]), "array of real numbers"),
        (lambda: spread([[1, 2], [3]]), "array of numbers"),
        (lambda: spread(X[:1]), "at least 2"),
        (lambda: frechet(X, np.zeros((5, 3))), "a have 2 features and b 3"),
        (lambda: frechet(X, X[:1]), "b have shape .* at least 2"),
        (lambda: frechet(NAN, X), "a have NaN or infinite"),
        (lambda: precision_recall(X, X[:3]), "generated have shape .* at least 4"),
        (lambda: precision_recall(X[:3], X), "real have shape .* at least 4"),
        (lambda: precision_recall(X, X, k=0), "k is 0"),
        (lambda: precision_recall(X, np.zeros((5, 3))), "real have 2 features and generated 3"),
        (lambda: precision_recall(X, NAN), "generated have NaN"),
        (lambda: fit_classifier(X, [0, 1, 0, 1, 0], seed=0), "images have shape"),
        (lambda: fit_classifier(DARK[:0], [], seed=0), "images have shape"),
        (lambda: fit_classifier(DARK + 2, [0, 1, 0, 1], seed=0), "from 2 to 2"),
        (lambda: fit_classifier(DARK * math.nan, [0, 1, 0, 1], seed=0), "images have NaN"),
        (lambda: fit_classifier(DARK, [0, 1, 0], seed=0), r"shape \(3,\); give 4 integers"),
        (lambda: fit_classifier(DARK, [0.0, 1, 0, 1], seed=0), "labels are float64"),
        (lambda: fit_classifier(DARK, [1, 1, 1, 1], seed=0), "all labels are 1"),
        (lambda: class_entropy(X), "sum to 1"),
        (lambda: class_entropy([[1.5, -0.5]]), "0 or more"),
        (lambda: class_entropy(X[:0]), "probabilities have shape"),
        (lambda: class_entropy(NAN), "probabilities have NaN"),
        (lambda: mean_confidence([[0.5, 0.5]]), "at least 2"),
    ],
)
def test_wrong_input_is_told(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_classifier_takes_images_of_its_size(classifier: Classifier):
    with pytest.raises(InputError, match=r"size \(3, 3\).*\(8, 8\)"):
        classifier.probabilities(DARK)
    with pytest.raises(InputError, match="from 0 to 16"):
        classifier.probabilities(load_digits().images)


def test_folder_without_a_classifier_is_told(classifier: Classifier, tmp_path: Path):
    with pytest.raises(InputError, match="does not hold a classifier"):
        Classifier.load(tmp_path)
    folder = tmp_path / "classifier"
    classifier.save(folder)
    settings = folder / "classifier.json"
    known = json.loads(settings.read_text())
    for wrong in ("{", "[]", json.dumps(known | {"layers": 3})):
        settings.write_text(wrong)
        with pytest.raises(InputError, match="does not hold a classifier"):
            Classifier.load(folder)
    settings.write_text(json.dumps(known))
    Classifier.load(folder)
    (folder / "classifier.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="does not hold a classifier"):
        Classifier.load(folder)
