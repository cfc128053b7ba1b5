from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from fortifai.errors import Diverged, InputError
from fortifai.images.vae import VAE, VAEFamily, VAEOptions, negative_elbo
from fortifai.lab.progress import Silent
from fortifai.weights import Dynamic, Focal, Keep, Truncate, TruncateQuantile

KEEP = Keep()


def config(**changes: Any) -> VAEOptions:
    small = {"kind": "vae", "latent": 4, "channels": (8, 16), "epochs": 1, "batch_size": 32}
    return VAEOptions.model_validate(small | changes)


def family(weight: Any = KEEP, size: tuple[int, int] = (8, 8), **changes: Any) -> VAEFamily:
    return VAEFamily(config(**changes), weight, size)


def new(weight: Any = KEEP, seed: int = 0, **changes: Any) -> VAE:
    return family(weight, **changes).create("scratch", seed=seed)


def fit(vae: VAE, samples: np.ndarray, seed: int = 0) -> dict[str, Any]:
    return vae.fit(samples, seed=seed, progress=Silent())


def write(vae: VAE, samples: np.ndarray, seed: int = 0) -> np.ndarray:
    return vae.regenerate(samples, seed=seed, progress=Silent())


def weights(vae: VAE) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in vae.module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they give on images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    return (load_digits().images / 16).astype(np.float32)


@pytest.fixture(scope="session")
def few(digits: np.ndarray) -> np.ndarray:
    return digits[:75]


# --- the bound, against NumPy in double precision -----------------------------------------------


class Reference:
    """The bound by its definition: logarithms of probabilities, no logits, no stable forms."""

    def __init__(self, *, threshold: float | None = None, gamma: float | None = None) -> None:
        self.threshold, self.gamma = threshold, gamma

    @staticmethod
    def log_p(logits: np.ndarray, x: np.ndarray) -> np.ndarray:
        r = 1 / (1 + np.exp(-logits))
        return x * np.log(r) + (1 - x) * np.log(1 - r)

    def weight(self, logits: np.ndarray, x: np.ndarray) -> np.ndarray:
        p = np.exp(self.log_p(logits, x))
        if self.threshold is not None:
            return np.where(p > self.threshold, 0.0, 1.0)
        if self.gamma is not None:
            return (1 - p) ** self.gamma
        return np.ones_like(p)

    def weighted(
        self, logits: np.ndarray, x: np.ndarray, weight: np.ndarray | None = None
    ) -> float:
        w = self.weight(logits, x) if weight is None else weight
        per_image = [
            sum(w[i].ravel() * -self.log_p(logits[i], x[i]).ravel()) for i in range(len(x))
        ]
        return float(np.mean(per_image))

    @staticmethod
    def kl(mean: np.ndarray, log_variance: np.ndarray) -> float:
        sigma = np.exp(log_variance / 2)
        per_image = (mean**2 / 2 + sigma**2 / 2 - 0.5 - np.log(sigma)).sum(1)
        return float(per_image.mean())


WEIGHTS = {
    "keep": (Keep(), Reference()),
    "truncate": (Truncate(0.6), Reference(threshold=0.6)),
    "focal": (Focal(2.0), Reference(gamma=2.0)),
    "focal-1.5": (Focal(1.5), Reference(gamma=1.5)),
}


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.random((3, 4, 8))
    images[:2] = images[:2] > 0.5  # two of black and white, one grey
    return {
        "logits": rng.normal(scale=2, size=images.shape),
        "images": images,
        "mean": rng.normal(size=(3, 5)),
        "log_variance": rng.normal(size=(3, 5)),
    }


def tensors(batch: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, dtype=dtype) for k, v in batch.items()}


# double precision: the sums have some 100 terms of order 1, each good to 1e-16, and the reference
# loses three digits to 1 - r; single precision: the same with 1e-7
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("name", WEIGHTS)
def test_bound_is_that_of_the_definition(batch, name, dtype, close):
    weight, reference = WEIGHTS[name]
    bound = negative_elbo(**tensors(batch, dtype), weight=weight, beta=0.7)
    logits, x = batch["logits"], batch["images"]
    kl = reference.kl(batch["mean"], batch["log_variance"])
    w = reference.weight(logits, x)
    if name == "truncate":
        assert 0.2 < w.mean() < 0.8  # both kinds are there
    assert bound.loss.dtype == dtype
    assert float(bound.loss) == pytest.approx(reference.weighted(logits, x) + 0.7 * kl, rel=close)
    assert float(bound.reconstruction) == pytest.approx(Reference().weighted(logits, x), rel=close)
    assert float(bound.kl) == pytest.approx(kl, rel=close)
    assert float(bound.kept_share) == pytest.approx(w.mean(), rel=close)
    assert not any(t.requires_grad for t in bound[1:])


def test_kl_is_that_between_the_distributions(batch):
    bound = negative_elbo(**tensors(batch, torch.float64), weight=KEEP)
    mean, log_variance = (torch.tensor(batch[k]) for k in ("mean", "log_variance"))
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    p = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(q, p).sum(1).mean()
    assert float(bound.kl) == pytest.approx(float(expected), rel=1e-12)  # as above


def test_kl_is_never_negative():
    rng = np.random.default_rng(1)
    for scale in (0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 5.0):
        log_variance = torch.tensor(rng.normal(scale=scale, size=(200, 1)), dtype=torch.float32)
        for one in log_variance.split(1):
            none = torch.zeros(1, 4, 4)
            bound = negative_elbo(none, none, torch.zeros(1, 1), one, weight=KEEP)
            # log_variance itself is subtracted, so half a unit of its last digit may remain
            assert float(bound.kl) >= -6e-8 * abs(float(one))


def test_kl_is_zero_for_the_prior():
    none, codes = torch.zeros(2, 4, 4), torch.zeros(2, 3)
    bound = negative_elbo(none, none, codes, codes, weight=KEEP)
    assert float(bound.kl) == 0
    assert float(bound.loss) == pytest.approx(16 * math.log(2), rel=1e-6)  # every pixel a coin


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradient_is_that_of_finite_differences(batch, name):
    """Central differences of the reference; the mask of truncation held fixed, focal's not."""
    weight, reference = WEIGHTS[name]
    logits, x = batch["logits"], batch["images"]
    given = tensors(batch, torch.float64)
    leaves = [given[k].requires_grad_() for k in ("logits", "mean", "log_variance")]
    got = torch.autograd.grad(negative_elbo(**given, weight=weight, beta=0.7).loss, leaves)
    mask = reference.weight(logits, x) if name == "truncate" else None
    h = 1e-5

    def slope(key: str, at: tuple[int, ...]) -> float:
        ends = []
        for sign in (1, -1):
            moved = {k: v.copy() for k, v in batch.items()}
            moved[key][at] += sign * h
            kl = reference.kl(moved["mean"], moved["log_variance"])
            ends.append(reference.weighted(moved["logits"], x, mask) + 0.7 * kl)
        return (ends[0] - ends[1]) / (2 * h)

    for key, gradient in zip(("logits", "mean", "log_variance"), got, strict=True):
        expected = np.array([slope(key, at) for at in np.ndindex(batch[key].shape)])
        # differences err by h^2 = 1e-10 and by 1e-14 / h = 1e-9, both times some tens
        np.testing.assert_allclose(gradient.numpy().ravel(), expected, atol=3e-8)
    if mask is not None:
        assert (got[0].numpy()[mask == 0] == 0).all()
        by_hand = (1 / (1 + np.exp(-logits)) - x) / len(x)
        # both are one formula with a rounding or two of 1e-16
        np.testing.assert_allclose(got[0].numpy()[mask == 1], by_hand[mask == 1], rtol=1e-12)


def test_detached_focal_weight_has_no_gradient(batch):
    given = tensors(batch, torch.float64)
    given["logits"].requires_grad_()
    loss = negative_elbo(**given, weight=Focal(2.0, detach_weight=True)).loss
    (got,) = torch.autograd.grad(loss, given["logits"])
    logits, x = batch["logits"], batch["images"]
    w = Reference(gamma=2.0).weight(logits, x)
    np.testing.assert_allclose(got, w * (1 / (1 + np.exp(-logits)) - x) / len(x), rtol=1e-10)


def test_where_every_pixel_is_truncated_only_the_kl_term_has_a_gradient(few):
    module = new().module
    images = torch.tensor(few)
    logits, mean, log_variance = module(images, torch.ones(len(few), 4))
    bound = negative_elbo(logits, images, mean, log_variance, weight=Truncate(0.0), beta=0.5)
    assert float(bound.kept_share) == 0
    assert float(bound.reconstruction) > 0
    assert float(bound.loss.detach()) == 0.5 * float(bound.kl)
    named = dict(module.named_parameters())
    got = torch.autograd.grad(bound.loss, list(named.values()), retain_graph=True)
    kl = 0.5 * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    expected = torch.autograd.grad(kl, list(named.values()), allow_unused=True)
    for name, a, b in zip(named, got, expected, strict=True):
        if name.startswith("decoder"):
            assert b is None
            assert not a.any()
        else:
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)  # float32, 1 - 1 cancels in b


# --- the network --------------------------------------------------------------------------------


def test_parameters_of_the_published_network():
    published = config(latent=20, channels=(64, 128))
    network = VAE.network(published, (28, 28))
    assert sum(p.numel() for p in network.parameters()) == 647_081
    assert VAEOptions(kind="vae").latent == 20
    assert VAEOptions(kind="vae").channels == (64, 128)


def test_network_takes_images_that_are_not_square():
    network = VAE.network(config(), (8, 12))
    logits, mean, log_variance = network(torch.rand(2, 8, 12), torch.zeros(2, 4))
    assert logits.shape == (2, 8, 12)
    assert mean.shape == log_variance.shape == (2, 4)


def test_code_is_mean_plus_deviation_times_noise(few):
    network = new().module
    images, noise = torch.tensor(few), torch.randn(75, 4, generator=torch.Generator())
    with torch.no_grad():
        logits, mean, log_variance = network(images, noise)
        sigma = np.sqrt(np.exp(log_variance.numpy()))
        expected = network.decode(mean + torch.tensor(sigma) * noise)
    # float32 logits of order 1 through four layers
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (logits - network.decode(mean)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(10, 8), (8, 30), (0, 8), (2, 4)])
def test_size_that_is_no_multiple_of_4_is_refused(size):
    message = f"images are {size[0]} x {size[1]}; .* multiples of 4; pad or resize the images"
    with pytest.raises(InputError, match=message):
        family(size=size)
    with pytest.raises(InputError, match=message):
        VAE.network(config(), size)


# --- training -----------------------------------------------------------------------------------


def test_fit_is_a_bare_loop(few):
    """Plain PyTorch from the same weights, batches and noise ends at the same weights."""
    settings = config(epochs=2, weight_decay=0.1, learning_rate=1e-2, beta=0.5)
    vae = VAEFamily(settings, KEEP, (8, 8)).create("base", seed=3)
    bare = copy.deepcopy(vae.module)
    seen: list[Any] = []
    vae.module.register_forward_pre_hook(lambda _, given: seen.append(given))
    fit(vae, few)
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for images, noise in seen:
        logits, mean, log_variance = bare(images, noise)
        crossed = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        loss = (crossed + 0.5 * kl) / len(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), len(images)))
    for name, value in bare.state_dict().items():
        # 6 steps of up to 1e-2 each; the fused and the plain Adam round differently, by 6e-8 here
        torch.testing.assert_close(vae.module.state_dict()[name], value, rtol=0, atol=2e-6)
    assert len(seen) == 6


def test_every_epoch_reads_every_image_once_with_fresh_noise(digits):
    images = digits[:1000]
    vae = new(epochs=2, batch_size=300)
    seen: list[Any] = []
    vae.module.register_forward_pre_hook(lambda _, given: seen.append(given))
    fit(vae, images)
    assert [len(x) for x, _ in seen] == [300, 300, 300, 100] * 2
    first, second = (torch.cat([x for x, _ in part]).numpy() for part in (seen[:4], seen[4:]))

    def rows(values: np.ndarray) -> list[bytes]:
        return sorted(v.tobytes() for v in values)

    assert rows(first) == rows(second) == rows(images)
    assert not (first == images).all()
    assert not (first == second).all()
    noise = torch.cat([z for _, z in seen]).double().numpy().ravel()
    assert len(np.unique(noise)) > 7900  # of 8000: some meet in float32
    # mean and variance of 8000 standard normals have deviations 1 / sqrt(n), sqrt(2 / n)
    assert abs(noise.mean()) < 5 / math.sqrt(8000)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / 8000)


def test_report_is_of_all_images_alike(few):
    """With steps too small to move a weight the KL term is known, the last batch short or not."""
    vae = new(Truncate(0.5), learning_rate=1e-14, weight_decay=0.0, beta=2.0, batch_size=32)
    before = weights(vae)
    with torch.no_grad():
        mean, log_variance = vae.module.encode(torch.tensor(few))
    report = fit(vae, few)
    assert all(torch.allclose(before[k], v, atol=1e-12) for k, v in weights(vae).items())
    expected = Reference.kl(mean.double().numpy(), log_variance.double().numpy())
    # KL of an untrained network is 1e-2: a cancellation of single precision leaves 5 digits
    assert report["kl"] == pytest.approx(expected, rel=1e-4)
    log_p = vae.log_prob(few).astype(np.float64)
    # untrained, the code hardly moves the logits, so that its noise changes little
    assert report["reconstruction"] == pytest.approx(-log_p.sum((1, 2)).mean(), rel=0.02)
    kept = log_p <= math.log(0.5)
    assert report["truncated_share"] == pytest.approx(1 - kept.mean(), abs=0.02)
    weighted = -(kept * log_p).sum((1, 2)).mean()
    assert report["loss"] == pytest.approx(weighted + 2 * expected, rel=0.05)
    assert report["images"] == 75


def test_report_by_epoch(few):
    report = fit(new(Truncate(0.5), epochs=3), few)
    epochs = report["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3]
    assert [e["threshold"] for e in epochs] == [0.5] * 3
    assert report["loss"] == epochs[-1]["loss"]
    shares = [e["truncated_share"] for e in epochs]
    assert len(set(shares)) == 3
    assert report["truncated_share"] == pytest.approx(np.mean(shares), rel=1e-12)  # of 3 doubles
    assert report["images"] == 225
    kept = fit(new(epochs=1), few)
    assert kept["truncated_share"] == 0
    assert kept["epochs"][0]["threshold"] is None
    # nothing was left out and beta is 1; the sums are float32
    assert kept["loss"] == pytest.approx(kept["reconstruction"] + kept["kl"], rel=1e-6)


def test_fit_learns_more_than_the_mean_image(digits):
    """No code at all can do no better than the entropy of the mean image."""
    mean = digits.astype(np.float64).mean(0)
    used = (mean > 0) & (mean < 1)
    entropy = -mean[used] * np.log(mean[used]) - (1 - mean[used]) * np.log(1 - mean[used])
    vae = new(epochs=14, batch_size=64, learning_rate=5e-3)
    report = fit(vae, digits)
    assert report["loss"] < 0.97 * entropy.sum()
    assert report["kl"] > 1
    losses = [e["loss"] for e in report["epochs"]]
    assert losses[-1] < losses[0]
    # what it writes looks like digits: every pixel's mean is near theirs, which spread by 0.3
    written = write(vae, digits)
    assert np.abs(written.mean(0) - mean).mean() < 0.05


@pytest.mark.parametrize("all_of_it", [Truncate(1.0), TruncateQuantile(1.0), Focal(0.0)])
def test_weight_that_keeps_all_is_none_bit_for_bit(few, all_of_it):
    plain, other = new(epochs=2), new(all_of_it, epochs=2)
    first, second = fit(plain, few), fit(other, few)
    assert equal(weights(plain), weights(other))
    assert first["loss"] == second["loss"]


@pytest.mark.parametrize("weight", [Truncate(0.5), Focal(2.0), TruncateQuantile(0.8)])
def test_weight_changes_what_is_learnt(few, weight):
    plain, other = new(epochs=2), new(weight, epochs=2)
    fit(plain, few)
    report = fit(other, few)
    assert not equal(weights(plain), weights(other))
    assert 0 < report["truncated_share"] < 1


def test_equal_seeds_give_equal_bits(few):
    def trained(made: int, seed: int) -> dict[str, torch.Tensor]:
        vae = new(Truncate(0.5), seed=made, epochs=2)
        fit(vae, few, seed)
        return weights(vae)

    assert equal(trained(0, 1), trained(0, 1))
    assert not equal(trained(0, 1), trained(0, 2))
    assert not equal(weights(new(seed=0)), weights(new(seed=1)))
    assert equal(weights(new(seed=5)), weights(family().create("base", seed=5)))


class NoDoubles(TorchDispatchMode):
    """An accelerator without double precision: what would be one is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"{function} made a float64 tensor")
        return out


@pytest.mark.parametrize("weight", [KEEP, Truncate(0.9), Focal(2.0), Dynamic(64)])
def test_no_double_precision_is_asked_of_the_device(few, weight):
    with pytest.raises(TypeError, match="float64"), NoDoubles():
        torch.zeros(1, dtype=torch.float64)
    with NoDoubles():
        vae = new(weight)
        fit(vae, few)
        write(vae, few)
        vae.log_prob(few)
        vae.encode(few)


def test_global_random_numbers_are_left_alone(few):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    vae = new(Dynamic(20), samples="bernoulli")
    fit(vae, few)
    write(vae, few)
    VAE.network(config(), (8, 8))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    # and they change nothing either
    torch.manual_seed(12345)
    again = new(Dynamic(20), samples="bernoulli")
    fit(again, few)
    assert equal(weights(vae), weights(again))
    assert (write(vae, few) == write(again, few)).all()


def test_chain_ends_where_no_pixel_is_kept(few):
    with pytest.raises(Diverged, match="epoch 1 kept a share of 0 of the pixels"):
        fit(new(Truncate(0.0)), few)


@pytest.mark.parametrize("weight", [Keep(), Truncate(0.9), Focal(2.0), Dynamic(20)])
def test_chain_ends_where_the_model_diverges(few, weight):
    with pytest.raises(Diverged, match="diverged"):
        fit(new(weight, learning_rate=1e20, epochs=3), few)


def test_chain_ends_where_no_threshold_can_be_read_off(few):
    vae = new(Dynamic(20))
    with torch.no_grad():
        vae.module.decoder[-1].bias.fill_(math.nan)
    with pytest.raises(Diverged, match="diverged: its log-probabilities are not finite"):
        fit(vae, few)


def test_chain_ends_where_the_last_step_breaks_the_weights(few):
    """The loss of the only step is finite; what it makes of the weights is not."""
    with pytest.raises(Diverged, match="diverged in epoch 1: its weights are not finite"):
        fit(new(learning_rate=1e39, batch_size=100), few)  # beyond single precision


def test_chain_ends_where_the_decoder_writes_no_numbers(few):
    vae = new()
    with torch.no_grad():
        vae.module.decoder[-1].bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not numbers"):
        write(vae, few)


def test_progress_counts_to_the_last_step(few):
    told: list[tuple[str, int, int]] = []

    class Listener(Silent):
        def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
            told.append((stage, done, total))

    vae = new(epochs=4, batch_size=4)
    vae.fit(few, seed=0, progress=Listener())
    done = [d for _, d, _ in told]
    assert {(stage, total) for stage, _, total in told} == {("train", 76)}
    assert done == sorted(set(done))
    assert done[-1] == 76
    assert 4 < len(done) < 20
    told.clear()
    vae.regenerate(few, seed=0, progress=Listener())
    assert told == [("rewrite", 75, 75)]


# --- a threshold that follows the model ---------------------------------------------------------


class Spy(Dynamic):
    """Writes down how many images it was settled on, and keeps the thresholds."""

    seen: list[np.ndarray]
    thresholds = (0.6, 0.7, 0.8)

    def calibrate(self, confidences: Any) -> Truncate:
        self.seen.append(np.array(confidences))
        return Truncate(self.thresholds[len(self.seen) - 1])


def test_dynamic_is_settled_before_every_epoch(few):
    Spy.seen = []
    vae = new(Spy(20), epochs=3)
    before = np.exp(vae.log_prob(few).astype(np.float64))
    report = fit(vae, few)
    assert [e["threshold"] for e in report["epochs"]] == [0.6, 0.7, 0.8]
    assert [seen.shape for seen in Spy.seen] == [(20, 8, 8)] * 3
    assert all(((seen > 0) & (seen <= 1)).all() for seen in Spy.seen)
    # the first are those of the untrained model on 20 different images of the training set;
    # batches of another size round differently
    apart = np.abs(Spy.seen[0][:, None] - before[None]).max((2, 3))
    assert (apart.min(1) < 1e-6).all()
    assert len(set(apart.argmin(1))) > 15
    assert apart.argmin(1).max() >= 20  # drawn, not the first, which may be all of one split
    assert not np.allclose(Spy.seen[1], Spy.seen[2])


def test_dynamic_thresholds_are_recorded_and_used(few):
    vae = new(Dynamic(100), epochs=3, learning_rate=1e-2)
    expected = Dynamic().calibrate(np.exp(vae.log_prob(few).astype(np.float64)))
    report = fit(vae, few)
    found = [e["threshold"] for e in report["epochs"]]
    # EM stops at 1e-4 of the likelihood, and the images come in another order, rounded otherwise
    assert found[0] == pytest.approx(expected.threshold, rel=1e-3)
    assert all(0 < t < 1 for t in found)
    assert len(set(found)) == 3
    fixed = new(expected, epochs=1, learning_rate=1e-2)
    # the same images, order and noise: the first epoch is that of a fixed threshold
    assert report["epochs"][0]["truncated_share"] == pytest.approx(
        fit(fixed, few)["truncated_share"], abs=5e-3
    )


# --- what a fitted model answers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(few: np.ndarray) -> VAE:
    vae = new(epochs=20, learning_rate=1e-2)
    fit(vae, few)
    return vae


def test_log_prob_is_that_of_the_mean_code(fitted, few):
    got = fitted.log_prob(few)
    assert got.dtype == np.float32
    assert got.shape == few.shape
    assert (got <= 0).all()
    double = copy.deepcopy(fitted.module).double()
    with torch.no_grad():
        mean, _ = double.encode(torch.tensor(few).double())
        logits = double.decode(mean).numpy()
    # logits of size 10 through four layers of single precision
    np.testing.assert_allclose(got, Reference.log_p(logits, few.astype(np.float64)), atol=3e-5)
    codes = fitted.encode(few)
    assert codes.dtype == np.float32
    assert codes.shape == (75, 4)
    np.testing.assert_allclose(codes, mean, atol=3e-5)


def test_batches_leave_no_trace(fitted, digits):
    """More images than are read at once, and a last batch that is short."""
    many = np.concatenate([digits, digits[:300]])
    assert len(many) == 2097
    # batches of another size round differently; the next image differs by 1
    np.testing.assert_allclose(fitted.log_prob(many)[-1:], fitted.log_prob(many[-1:]), atol=1e-4)
    np.testing.assert_allclose(
        fitted.encode(many)[1024:1030], fitted.encode(many[1024:1030]), atol=1e-4
    )
    written = write(fitted, many)
    assert len(np.unique(written.reshape(len(written), -1), axis=0)) == len(many)
    assert written.dtype == np.float32


@pytest.mark.parametrize("samples", ["means", "bernoulli"])
def test_what_is_written(fitted, few, samples):
    vae = VAE(family(samples=samples), fitted.module)
    written = write(vae, few, seed=1)
    assert written.shape == few.shape
    assert written.dtype == few.dtype
    assert (written >= 0).all()
    assert (written <= 1).all()
    assert set(np.unique(written)) == {0.0, 1.0} or samples == "means"
    assert (written == write(vae, few, seed=1)).all()
    assert (written == write(vae, np.zeros_like(few), seed=1)).all()
    assert not (written == write(vae, few, seed=2)).all()


def test_codes_of_what_is_written_are_standard_normal(fitted, digits):
    """The decoder's inputs: N(0, I), and its outputs are the sigmoid of its logits."""
    seen: list[torch.Tensor] = []
    hook = fitted.module.decoder.register_forward_hook(lambda _, z, out: seen.extend((z[0], out)))
    written = write(fitted, digits)
    hook.remove()
    codes = torch.cat(seen[::2]).double().numpy()
    assert codes.shape == (1797, 4)
    # deviations of mean and covariance of n standard normals are 1 / sqrt(n), sqrt(2 / n)
    assert np.abs(codes.mean(0)).max() < 5 / math.sqrt(1797)
    assert np.abs(np.cov(codes.T) - np.eye(4)).max() < 5 * math.sqrt(2 / 1797)
    logits = torch.cat(seen[1::2])[:, 0].double().numpy()
    np.testing.assert_allclose(written, 1 / (1 + np.exp(-logits)), atol=1e-6)  # single precision


def test_bernoulli_draws_have_the_means_as_probabilities(fitted, digits):
    means = write(fitted, digits).astype(np.float64)
    drawn = write(VAE(family(samples="bernoulli"), fitted.module), digits).astype(np.float64)
    # equal seeds give equal codes, so that pixel by pixel the mean is known; 5 deviations
    bound = 5 * math.sqrt((means * (1 - means)).sum())
    assert abs((drawn - means).sum()) < bound
    variance = ((means - means.mean()) ** 2 * means * (1 - means)).sum()
    assert abs(((drawn - means) * (means - means.mean())).sum()) < 5 * math.sqrt(variance)


def test_what_was_saved_is_loaded(fitted, few, tmp_path):
    folder = tmp_path / "deep" / "model"
    fitted.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "vae.json"]
    loaded = family().load(folder)
    assert equal(weights(fitted), weights(loaded))
    assert (loaded.log_prob(few) == fitted.log_prob(few)).all()
    assert (write(loaded, few) == write(fitted, few)).all()
    first, second = VAE(family(), copy.deepcopy(fitted.module)), loaded
    assert fit(first, few) == fit(second, few)
    assert equal(weights(first), weights(second))


@pytest.mark.parametrize("other", [{"latent": 5}, {"channels": (8, 8)}, {"size": (8, 12)}])
def test_autoencoder_of_another_shape_is_not_loaded(fitted, tmp_path, other):
    fitted.save(tmp_path / "model")
    with pytest.raises(InputError, match="must be equal"):
        family(**other).load(tmp_path / "model")


# --- wrong input --------------------------------------------------------------------------------


def spoilt(value: float) -> np.ndarray:
    images = np.full((3, 8, 8), 0.5, dtype=np.float32)
    images[1, 2, 3] = value
    return images


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5, -0.1])
@pytest.mark.parametrize("call", ["fit", "log_prob", "encode"])
def test_pixels_outside_the_range_are_refused(value, call):
    vae = new()
    before = weights(vae)
    with pytest.raises(InputError, match=r"must be finite and lie in \[0, 1\]"):
        fit(vae, spoilt(value)) if call == "fit" else getattr(vae, call)(spoilt(value))
    assert equal(before, weights(vae))


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 12), (3, 1, 8, 8), (3, 64), (0, 8, 8)])
@pytest.mark.parametrize("call", [fit, write, VAE.log_prob, VAE.encode])
def test_images_of_another_shape_are_refused(shape, call):
    with pytest.raises(InputError, match=r"this autoencoder takes \(n, 8, 8\)"):
        call(new(), np.zeros(shape, dtype=np.float32))


def test_arrays_that_must_not_be_written_to_are_read(few, tmp_path: Path):
    np.save(tmp_path / "few.npy", few)
    mapped = np.load(tmp_path / "few.npy", mmap_mode="r")
    vae = new()
    fit(vae, mapped)
    assert (vae.log_prob(mapped) == vae.log_prob(few)).all()
