"""What every family promises the loop, put to each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fortifai.images.vae import VAEFamily, VAEOptions
from fortifai.lab.budget import Spent
from fortifai.lab.loop import Family, Model
from fortifai.lab.progress import Silent
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import CausalLMFamily
from fortifai.models.options import RegenerateOptions, Sample, TrainOptions
from fortifai.points.gaussian import GaussianFamily, GaussianOptions
from fortifai.points.gmm import GMMFamily, GMMOptions
from fortifai.weights import Dynamic, Keep, Truncate


@dataclasses.dataclass(frozen=True)
class Case:
    family: Family[Any]
    samples: np.ndarray
    shape: tuple[int, ...]
    """Of log_prob: one number a token, point or pixel."""
    seeds: int | None = None
    """How many chains the family works on at once; None: it knows of one alone."""
    draws_in_fit: bool = True
    """Whether a fit depends on its seed; a density that is computed from the points does not."""

    def draw(self, first: int) -> int | tuple[int, ...]:
        return first if self.seeds is None else tuple(range(first, first + self.seeds))


def gaussian(tmp_path: Path, make: Any, stream: Any) -> Case:
    samples = np.random.default_rng(0).normal(size=(60, 3, 2))
    return Case(
        GaussianFamily(GaussianOptions(kind="gaussian"), Keep()), samples, (60, 3), 3, False
    )


def gmm(tmp_path: Path, make: Any, stream: Any) -> Case:
    samples = np.random.default_rng(0).normal(size=(80, 2)) + np.repeat([[0, 0], [5, 5]], 40, 0)
    return Case(
        GMMFamily(GMMOptions(kind="gmm", components=2), Keep()), samples, (80,), draws_in_fit=False
    )


def vae(tmp_path: Path, make: Any, stream: Any) -> Case:
    samples = np.random.default_rng(0).random((40, 8, 8), dtype=np.float32)
    config = VAEOptions(kind="vae", latent=3, channels=(4, 8), epochs=2, batch_size=16)
    return Case(VAEFamily(config, Keep(), (8, 8)), samples, (40, 8, 8))


def causal_lm(tmp_path: Path, make: Any, stream: Any) -> Case:
    base = make(seed=3)
    base.save(tmp_path / "base")
    family = CausalLMFamily(
        base=tmp_path / "base",
        scratch=lambda seed: make(seed=seed),
        weight=Keep(),
        train=TrainOptions(epochs=1, learning_rate=1e-3, batch_size=4, block=16),
        regenerate=RegenerateOptions(context=8, new_tokens=8, decoding=Sample(kind="sample")),
        select=None,
        workdir=tmp_path / "trainer",
        special=base.special,
    )
    return Case(family, stream, stream.shape)


FAMILIES = [gaussian, gmm, vae, causal_lm]


@pytest.fixture(params=FAMILIES, ids=lambda f: f.__name__)
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make: Callable[..., CausalLM],
    stream: np.ndarray,
) -> Case:
    built: Case = request.param(tmp_path, make, stream)
    return built


def fitted(case: Case, first: int = 0) -> Model:
    model: Model = case.family.create("scratch", seed=case.draw(first))
    model.fit(case.samples, seed=case.draw(first + 100), progress=Silent())
    return model


def write(case: Case, model: Model, first: int) -> np.ndarray:
    return np.array(model.regenerate(case.samples, seed=case.draw(first), progress=Silent()))


def test_what_is_written_has_the_size_of_what_was_there(case):
    written = write(case, fitted(case), 7)
    assert written.shape == case.samples.shape
    assert written.dtype == case.samples.dtype
    assert np.isfinite(written).all()
    assert (written != case.samples).any()


def test_log_prob_is_finite_and_one_number_a_datum(case):
    log_p = fitted(case).log_prob(case.samples)
    assert log_p.shape == case.shape
    assert np.isfinite(log_p).all()


def test_equal_seeds_are_identical_and_different_seeds_differ(case):
    one, again, other = fitted(case), fitted(case), fitted(case, first=1000)
    np.testing.assert_array_equal(one.log_prob(case.samples), again.log_prob(case.samples))
    np.testing.assert_array_equal(write(case, one, 7), write(case, again, 7))
    assert (write(case, one, 7) != write(case, one, 700)).any()
    differs = bool((one.log_prob(case.samples) != other.log_prob(case.samples)).any())
    assert differs == case.draws_in_fit, "what the case says of draws_in_fit is not so"


def test_save_and_load_round_trip_exactly(case, tmp_path):
    model = fitted(case)
    model.save(tmp_path / "model")
    loaded = case.family.load(tmp_path / "model")
    np.testing.assert_array_equal(model.log_prob(case.samples), loaded.log_prob(case.samples))
    np.testing.assert_array_equal(write(case, model, 7), write(case, loaded, 7))
    # and goes on alike: what a resumed run does next is what the unbroken one would have done
    data = write(case, model, 8)
    for each in (model, loaded):
        each.fit(data, seed=case.draw(9), progress=Silent())
    np.testing.assert_array_equal(model.log_prob(case.samples), loaded.log_prob(case.samples))


def test_a_fit_reports_plain_numbers(case):
    model = case.family.create("scratch", seed=case.draw(0))
    report = model.fit(case.samples, seed=case.draw(100), progress=Silent())
    assert np.atleast_1d(report["truncated_share"]).tolist() == [0.0] * (case.seeds or 1)


def test_the_samples_given_are_left_as_they_were(case):
    before = case.samples.copy()
    write(case, fitted(case), 7)
    np.testing.assert_array_equal(case.samples, before)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied"])
def test_a_mixture_of_one_component_is_the_gaussian(covariance):
    rng = np.random.default_rng(2)
    points = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.0], [0.6, 0.5]]) + [3.0, -1.0]
    config = GMMOptions(kind="gmm", components=1, covariance=covariance, reg_covar=0.0)
    mixture = GMMFamily(config, Keep()).create("base", seed=0)
    mixture.fit(points, seed=0, progress=Silent())
    single = GaussianFamily(GaussianOptions(kind="gaussian"), Keep()).create("base", seed=(0,))
    single.fit(points[:, None], seed=(0,), progress=Silent())
    (one,) = mixture.mixtures
    # one step of EM with one component is the closed form: equal but for the order of sums
    np.testing.assert_allclose(one.means[0], single.mean[0], rtol=1e-12)
    expected = single.covariance[0]
    if covariance == "diag":
        expected = np.diag(np.diag(expected))
    np.testing.assert_allclose(one.covariances[0], expected, rtol=1e-10, atol=1e-14)
    if covariance != "diag":
        np.testing.assert_allclose(
            mixture.log_prob(points), single.log_prob(points[:, None])[:, 0], rtol=1e-9
        )


def test_a_language_model_settles_a_dynamic_threshold_on_its_own_confidences(
    tmp_path, make, stream
):
    base = causal_lm(tmp_path, make, stream)
    dynamic = Dynamic(rows=4)
    family = dataclasses.replace(base.family, weight=dynamic)
    model = family.create("base", seed=0)
    # before it trains: the first 4 blocks of 16 tokens
    expected = dynamic.calibrate(np.exp(model.log_prob(stream[:64]).astype(np.float64)))
    report = model.fit(stream, seed=1, progress=Silent())
    assert report["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    fixed = dataclasses.replace(base.family, weight=Truncate(report["threshold"]))
    same = fixed.create("base", seed=0)
    same.fit(stream, seed=1, progress=Silent())
    np.testing.assert_array_equal(model.log_prob(stream), same.log_prob(stream))


def test_what_a_model_is_put_to_is_counted_in_samples(case):
    """A fit reads whole blocks; of text the first 8 tokens are kept, the others written."""
    model = fitted(case)
    model.regenerate(case.samples, seed=case.draw(7), progress=Silent())
    model.log_prob(case.samples)
    n = len(case.samples)
    trained, generated = n, n
    if isinstance(case.family, VAEFamily):
        trained = 2 * n  # epochs
    elif isinstance(case.family, CausalLMFamily):
        block = 16 - len(case.family.special.front)
        trained, generated = n // block * block, n - 8
    assert model.spent == Spent(trained, generated, scored=n)
    handed = model.spent = Spent()
    model.log_prob(case.samples)
    assert handed == Spent(scored=n)


def test_weights_are_changed_in_place_and_saved(case, tmp_path):
    if not isinstance(case.family, VAEFamily | CausalLMFamily):
        pytest.skip("it has no weights")
    model: Any = fitted(case)
    before = model.log_prob(case.samples)
    saved = {name: theta.clone() for name, theta in model.weights().items()}
    model.fit_plainly(case.samples, 2, seed=5, progress=Silent())
    # one epoch of text or two of images in its fit, and two more
    once = 1 if isinstance(case.family, CausalLMFamily) else 2
    assert model.spent.trained * once == fitted(case).spent.trained * (once + 2)
    if isinstance(case.family, VAEFamily):
        assert model.family is case.family
    assert (model.log_prob(case.samples) != before).any()
    with torch.no_grad():
        for name, theta in model.weights().items():
            theta.copy_(saved[name])
    np.testing.assert_array_equal(model.log_prob(case.samples), before)
    model.save(tmp_path / "again")
    loaded = case.family.load(tmp_path / "again")
    np.testing.assert_array_equal(loaded.log_prob(case.samples), before)
