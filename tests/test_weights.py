from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fortifai import (
    WeightedCrossEntropyLoss,
    linear_eaft_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
    with_weight,
)
from fortifai.errors import InputError, RunFailed, check_number, check_whole
from fortifai.lab.spec import weight_type
from fortifai.weights import (
    DFT,
    EAFT,
    WEIGHTS,
    Calibrated,
    Dynamic,
    Fitted,
    Focal,
    Keep,
    Random,
    Truncate,
    TruncateQuantile,
    TruncateTails,
    Weight,
    check_range,
    is_elementwise,
    keeps_all,
    uses_entropy,
)

P = [0.0, 1e-40, 1e-9, 0.1, 0.5, 0.75, 0.9, 0.999, 1.0]
DTYPES = [torch.float32, torch.float64]


def log_p(values: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([math.log(p) if p else -math.inf for p in values], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (Keep(), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Truncate(0.0), [1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Truncate(0.5), [1, 1, 1, 1, 1, 0, 0, 0, 0]),
        (Truncate(), [1, 1, 1, 1, 1, 1, 1, 0, 0]),  # 0.9, which ties
        (Truncate(1.0), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Focal(0.0), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Focal(1.0), [1, 1, 1 - 1e-9, 0.9, 0.5, 0.25, 0.1, 0.001, 0]),
        (Focal(), [1, 1, 1 - 2e-9, 0.81, 0.25, 0.0625, 0.01, 1e-6, 0]),
        (DFT(), [0, 0, 1e-9, 0.1, 0.5, 0.75, 0.9, 0.999, 1]),
        (Focal(0.5), [1, 1, 1, 0.9**0.5, 0.5**0.5, 0.5, 0.1**0.5, 0.001**0.5, 0]),
    ],
    ids=str,
)
def test_values(weight, expected, dtype) -> None:
    weights = weight(log_p(P, dtype).reshape(3, 3))
    assert weights.shape == (3, 3)
    assert weights.dtype == dtype
    # log p of 0.999 in single precision is good to 1e-7 in p, a ten-thousandth of 1 - p
    rtol = 1e-12 if dtype is torch.float64 else 2e-4
    np.testing.assert_allclose(weights.flatten(), expected, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_focal_gradient_is_minus_gamma_p_times_power(gamma) -> None:
    """d/dlog p of (1 - p)^gamma is -gamma p (1 - p)^(gamma - 1)."""
    p = np.array(P[1:-1])
    leaf = log_p(P).requires_grad_()
    (grad,) = torch.autograd.grad(Focal(gamma)(leaf).sum(), leaf)
    expected = [0.0, *(-gamma * p * (1 - p) ** (gamma - 1)), 0.0]
    # p comes as expm1(log p) + 1, good to a rounding of 1; the loss's gradient beside it is near 1
    np.testing.assert_allclose(grad, expected, rtol=1e-10, atol=1e-15)
    assert not Focal(gamma, detach_weight=True)(leaf).requires_grad


@pytest.mark.parametrize("weight", [Keep(), Truncate(0.5), Truncate(1.0), Focal(0.0)], ids=str)
def test_these_carry_no_gradient(weight) -> None:
    assert not weight(log_p(P).requires_grad_()).requires_grad


def test_truncation_keeps_ties() -> None:
    for threshold in np.random.default_rng(0).random(1000):
        for dtype in DTYPES:
            level = torch.tensor([math.log(threshold)], dtype=dtype)
            above = torch.nextafter(level, torch.zeros(1, dtype=dtype))
            assert Truncate(float(threshold))(torch.cat([level, above])).tolist() == [1, 0]


def test_rounding_above_certainty() -> None:
    """log p is never above 0, but rounding may put it there."""
    above = torch.tensor([1e-7])
    assert Truncate(1.0)(above) == 1
    assert Truncate(0.99)(above) == 0
    for gamma in (0.5, 2.0, 3.0):
        assert Focal(gamma)(above) == 0


def test_no_number_stays_none() -> None:
    """A model that diverged must not look like one that is sure of everything."""
    nan = torch.tensor([math.nan])
    for weight in (Truncate(0.9), Truncate(0.0), Focal(0.5), Focal(2.0), Random(0.01)):
        assert bool((weight(nan) * -nan).isnan())


def test_keeps_all() -> None:
    assert all(keeps_all(w) for w in (Keep(), Truncate(1.0), Truncate(1), Focal(0.0)))
    assert not any(keeps_all(w) for w in (Truncate(), Truncate(1 - 1e-16), Focal(), torch.exp))


def test_they_are_values() -> None:
    assert Truncate(0.9) == Truncate() != Truncate(0.8)
    assert len({Focal(), Focal(2.0), Focal(2.0, detach_weight=True)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Truncate().threshold = 0.5


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, "0.9", None, True])
def test_bad_thresholds(value) -> None:
    with pytest.raises(InputError, match="threshold is"):
        Truncate(value)


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf, "2", None, False])
def test_bad_gammas(value) -> None:
    with pytest.raises(InputError, match="gamma is"):
        Focal(value)


def test_numbers_of_any_kind() -> None:
    assert Truncate(np.float32(0.5)) == Truncate(0.5)
    assert Focal(2) == Focal(2.0)


# --- weights of what has no probability, and a threshold that is found ---------------------------


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5, 101, 1000])
def test_the_quantile_is_numpys_percentile(n, quantile):
    x = np.random.default_rng(n).normal(size=n) * 40  # densities: far above 0, too
    kept = TruncateQuantile(quantile)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(kept, x <= np.percentile(x, 100 * quantile))


def test_the_quantile_keeps_ties_and_any_shape_and_has_no_gradient():
    x = torch.tensor([[1.0, 2.0], [2.0, 3.0]], requires_grad=True)
    kept = TruncateQuantile(0.5)(x)
    assert kept.tolist() == [[1, 1], [1, 0]]
    assert not kept.requires_grad
    # a shift of log p, as another unit of the data gives, changes nothing
    assert TruncateQuantile(0.5)(x + 100).tolist() == kept.tolist()


@pytest.mark.parametrize("quantile", [0, -0.1, 1.1, math.nan, "0.5", True])
def test_a_wrong_quantile_is_told(quantile):
    with pytest.raises(InputError, match="quantile is"):
        TruncateQuantile(quantile)


def test_dynamic_is_calibrated_where_sure_and_unsure_part():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.normal(0.2, 0.05, 4000), rng.normal(0.9, 0.02, 4000)]).clip(0, 1)
    told = Dynamic().calibrate(p.reshape(80, 100))
    assert isinstance(told, Truncate)
    # five standard deviations of the low ones and more of the high ones lie on their own side
    assert 0.4 < told.threshold < 0.88
    assert Dynamic().calibrate(np.full(50, 0.3)) == Truncate(1.0)  # nothing to part: keep all


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_wrong_rows_are_told(rows):
    with pytest.raises(InputError, match="rows is"):
        Dynamic(rows)


def test_weight_by_entropy() -> None:
    entropy = torch.tensor([0.0, 0.25, 1.0, 1.0 + 1e-7, -1e-7, math.nan])
    anything = torch.zeros(6)
    assert EAFT()(anything, entropy)[:5].tolist() == [0, 0.25, 1, 1, 0]
    assert EAFT(2.0)(anything, entropy)[:5].tolist() == [0, 0.0625, 1, 1, 0]
    assert EAFT(0.5, None)(anything, entropy)[:5].tolist() == [0, 0.5, 1, 1, 0]
    assert EAFT()(anything, entropy)[5].isnan()
    assert not EAFT()(anything, entropy.requires_grad_()).requires_grad
    assert not DFT()(anything.requires_grad_()).requires_grad


def test_what_weights_declare() -> None:
    for weight in (Keep(), Truncate(), Focal(), DFT(), EAFT()):
        assert is_elementwise(weight)
        assert uses_entropy(weight) == isinstance(weight, EAFT)
    assert not is_elementwise(TruncateQuantile())
    assert (EAFT().entropy_top_k, EAFT(top_k=None).entropy_top_k) == (20, None)

    def plain(log_p: torch.Tensor) -> torch.Tensor:
        return log_p.exp()

    assert not is_elementwise(plain)
    assert not uses_entropy(plain)
    plain.elementwise, plain.entropy_top_k = True, 5
    assert is_elementwise(plain)
    assert uses_entropy(plain)


def test_bad_parameters_of_entropy() -> None:
    for top_k in (1, 0, -3, 2.0, True, "20"):
        with pytest.raises(InputError, match="top_k is"):
            EAFT(top_k=top_k)
    for alpha in (-1.0, math.nan, math.inf, None, True):
        with pytest.raises(InputError, match=f"alpha is {alpha}"):
            EAFT(alpha)


# --- weights that a YAML names, those of a plugin among them --------------------------------------


@dataclasses.dataclass(frozen=True)
class Halved(Weight, kind="halved"):
    share: float = 0.5
    domains = ("text", "points")

    def __post_init__(self) -> None:
        check_number("share", self.share, "[0, 1]")

    def __call__(self, log_p: torch.Tensor) -> torch.Tensor:
        return torch.full_like(log_p, self.share, requires_grad=False)


def read(domain: str, given: Any, *more: type[Weight]) -> Any:
    return TypeAdapter(weight_type(domain, more)).validate_python(given)


KINDS = {
    "text": {"keep", "truncate", "focal", "dynamic", "fitted", "dft", "eaft", "random"},
    "images": {"keep", "truncate", "focal", "dynamic"},
    "points": {"keep", "truncate_quantile", "truncate_tails"},
}


# options of those that cannot be made without
NEEDED: dict[type[Weight], dict[str, float]] = {TruncateTails: {"a": 1.0}, Random: {"kept": 0.5}}


@pytest.mark.parametrize("domain", KINDS)
def test_each_kind_of_data_has_its_weights(domain):
    for weight in WEIGHTS:
        assert weight.kind in set().union(*KINDS.values()), f"name {weight.kind!r} in KINDS"
        one = weight(**NEEDED.get(weight, {}))
        if one.kind in KINDS[domain]:
            plain = dataclasses.asdict(one)
            assert read(domain, plain) == one
            assert next(iter(plain)) == "kind", "which is read first where a configuration is shown"
        else:
            with pytest.raises(ValidationError, match="does not match any of the expected tags"):
                read(domain, dataclasses.asdict(one))
    assert {weight.kind for weight in WEIGHTS} == set().union(*KINDS.values())


def test_a_weight_from_outside_is_named_beside_the_others():
    assert read("text", {"kind": "halved", "share": 0.25}, Halved) == Halved(0.25)
    assert read("points", {"kind": "keep"}, Halved) == Keep()
    for domain, more in (("text", ()), ("images", (Halved,))):
        with pytest.raises(ValidationError, match="'halved'"):
            read(domain, {"kind": "halved"}, *more)
    with pytest.raises(ValidationError, match=r"share is 2\.0; it must be a number in"):
        read("text", {"kind": "halved", "share": 2}, Halved)
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        read("text", {"kind": "halved", "shaer": 1}, Halved)

    @dataclasses.dataclass(frozen=True)
    class Other(Halved):
        pass

    @dataclasses.dataclass(frozen=True)
    class Nameless(Weight):
        pass

    with pytest.raises(InputError, match="Nameless has no kind"):
        weight_type("text", [Nameless])
    with pytest.raises(InputError, match=r"Other and .*Halved are both weights of kind 'halved'"):
        weight_type("text", [Halved, Other])


def test_a_weight_from_outside_has_losses_like_the_others():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 4, 1, -100, 2, 3])
    loss = with_weight(weighted_cross_entropy, Halved)
    expected = 0.25 * torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    found, stats = loss(logits, target, share=0.25, label_smoothing=0.1, return_stats=True)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)  # one rounding more
    assert stats.kept_share == 0.25

    class HalvedLoss(WeightedCrossEntropyLoss, of=Halved):
        pass

    assert torch.equal(HalvedLoss(0.25, label_smoothing=0.1)(logits, target), found)
    names = list(inspect.signature(loss).parameters)
    assert names[:4] == ["input", "target", "share", "sample_weight"]
    assert "label_smoothing" in names
    with pytest.raises(TypeError, match="unexpected keyword argument 'shaer'"):
        loss(logits, target, shaer=0.25)


def test_tails_are_those_of_a_gaussian():
    r = torch.tensor([0.0, 0.5, 1.0 - 1e-9, 1.0 + 1e-9, 3.0, 40.0], dtype=torch.float64)
    assert TruncateTails(1.0)(-(r**2) / 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert TruncateTails(0.0).keeps_all
    assert not TruncateTails(0.1).keeps_all
    for a in (-0.1, 38.1, math.nan, "1"):
        with pytest.raises(InputError, match=r"a is .*\[0, 38\]"):
            TruncateTails(a)


def test_the_losses_can_be_pickled():
    for loss in (truncated_cross_entropy, weighted_cross_entropy, linear_eaft_cross_entropy):
        assert pickle.loads(pickle.dumps(loss)) is loss


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", (0, 1, 0.5, np.float32(0.5), True + 0), (-1e-9, 1 + 1e-9, True, "0", None)),
        ("(0, 1)", (0.5,), (0, 1, math.nan)),
        ("[0, inf)", (0, 1e300), (math.inf, -math.inf)),
    ],
)
def test_numbers_are_checked_by_their_interval(interval, inside, outside):
    for value in inside:
        check_number("x", value, interval)
    for value in outside:
        with pytest.raises(InputError) as error:
            check_number("x", value, interval)
        assert str(error.value) == f"x is {value!r}; it must be a number in {interval}"


def test_whole_numbers_are_checked():
    for value in (2, np.int64(7)):
        check_whole("n", value, 2)
    check_whole("n", -5)
    for value in (1, 2.0, True, "2", None):
        with pytest.raises(InputError, match="must be a whole number of 2 or more, or None"):
            check_whole("n", value, 2, ", or None")


def test_a_fitted_threshold_is_a_quantile_of_own_confidences() -> None:
    p = np.linspace(0, 1, 101)
    assert Fitted(dropped=0.25).calibrate(p) == Truncate(0.75)
    above = Fitted(dropped=0.1).calibrate(p)(torch.tensor(p).log())
    assert float(above.mean()) == pytest.approx(0.9, abs=0.01)
    # a model that is certain of half of what it writes: all that is dropped, and no more
    sure = torch.tensor([0.0] * 5 + [-0.5] * 5)
    weights = Fitted(dropped=0.25).calibrate(sure.exp().numpy())(sure)
    assert weights.tolist() == [0] * 5 + [1] * 5
    with pytest.raises(InputError, match=r"dropped is 1\.0"):
        Fitted(dropped=1.0)
    with pytest.raises(InputError, match="rows is 0"):
        Fitted(rows=0)


def test_a_threshold_says_fitted_for_short() -> None:
    adapter = TypeAdapter(weight_type("text"))
    short = {"kind": "truncate", "threshold": "fitted", "dropped": 0.1}
    assert adapter.validate_python(short) == Fitted(dropped=0.1)
    assert adapter.validate_python({"kind": "truncate", "threshold": 0.5}) == Truncate(0.5)
    with pytest.raises(ValueError, match="kind"):
        TypeAdapter(weight_type("images")).validate_python(short)


def test_random_tokens_are_kept_whatever_their_probability() -> None:
    log_p = torch.linspace(-9, 0, 40_000)
    torch.manual_seed(0)
    first, second = Random(0.3)(log_p), Random(0.3)(log_p)
    assert (first != second).any()
    torch.manual_seed(0)
    assert (Random(0.3)(log_p) == first).all()
    for half in (first[:20_000], first[20_000:]):
        # 0.0032 is the standard deviation of the share of 20,000
        assert float(half.mean()) == pytest.approx(0.3, abs=0.013)
    assert set(first.tolist()) == {0.0, 1.0}
    assert keeps_all(Random(1.0))
    assert not keeps_all(Random(0.99))
    with pytest.raises(InputError, match="kept is 0"):
        Random(0)


@dataclasses.dataclass(frozen=True)
class Gives(Weight, kind="gives"):
    def __call__(self, log_p):
        return self.of(log_p)


@pytest.mark.parametrize(
    ("of", "error", "words"),
    [
        (lambda x: torch.full_like(x, 5.0), InputError, "gave 5 for log p = -30; .* in .0, 1."),
        (lambda x: torch.where(x > -1, -1.0, 1.0), InputError, "gave -1 for log p = -0.9"),
        (lambda x: torch.full_like(x, math.nan), InputError, "gave nan for log p = -30"),
        (lambda x: x.exp().mean(), InputError, r"gave \(\) for log-probabilities \(301,\)"),
        (lambda x: None, InputError, "gave NoneType for log-probabilities"),
        (lambda x: x.oops, RunFailed, r"the weight 'gives' failed \(AttributeError: .*line \d+\)"),
    ],
)
def test_a_weight_of_a_plugin_is_tried_before_a_run(monkeypatch, of, error, words):
    monkeypatch.setattr(Gives, "of", staticmethod(of), raising=False)
    with pytest.raises(error, match=words):
        check_range(Gives())


def test_weights_of_the_package_lie_between_0_and_1():
    lacking = {Truncate: {"threshold": 0.9}, Random: {"kept": 0.5}}
    for kind in WEIGHTS:
        if "text" in kind.domains and not issubclass(kind, Calibrated):
            check_range(kind(**lacking.get(kind, {})))
