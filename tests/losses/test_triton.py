"""The Triton kernels against the formulas in numpy: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fortifai import linear_truncated_cross_entropy, linear_weighted_cross_entropy
from fortifai.errors import InputError
from fortifai.losses import chunks, kernels
from fortifai.weights import EAFT, Focal, Keep

from .reference import Case, check_linear
from .test_linear import CASES, EXACT, NAMES, SINGLE, batch, caller

pytest.importorskip("triton", reason="Triton runs on Linux alone")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where there is no GPU, `conftest` has switched the interpreter on."""


def there(call: Callable[..., Any]) -> Callable[..., Any]:
    """A loss on `DEVICE` of tensors on the CPU; gradients come back through the moves."""

    def moved(*tensors: torch.Tensor | None) -> Any:
        loss, stats = call(*(None if t is None else t.to(DEVICE) for t in tensors))
        return loss.cpu(), stats

    return moved


on_device = pytest.mark.usefixtures("made_there")


@pytest.fixture
def made_there() -> Iterator[None]:
    """Tensors are made on `DEVICE`."""
    with torch.device(DEVICE):
        yield


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four logits, so that few classes need several, the last of them in part."""
    from fortifai.losses import triton_softmax

    monkeypatch.setattr(triton_softmax, "_LANES", 4)
    # what the kernels replace cannot run
    monkeypatch.setattr(kernels, "_in_use", None)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("chunk_size", [pytest.param(None, marks=pytest.mark.long), 7])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_value_gradients_and_kept_share(case: Case, chunk_size: int | None) -> None:
    tensors, target = batch(20, 5, 7, seed=1)
    with kernels.triton_kernels():
        check_linear(there(caller(case, chunk_size)), tensors, target, case, **EXACT)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 8, 9, 130])
def test_any_number_of_classes(classes: int) -> None:
    tensors, target = batch(6, 3, classes, seed=classes)
    for case in (Case("tce", 0.5, softcap=3.0), Case("eaft", 1.0, top_k=None)):
        with kernels.triton_kernels():
            check_linear(there(caller(case)), tensors, target, case, **EXACT)


@pytest.mark.usefixtures("lanes")
def test_single_precision() -> None:
    tensors, target = batch(20, 5, 33, seed=3)
    single: Any = tuple(None if t is None else t.float() for t in tensors)
    for case in (Case("tce", 0.3), Case("focal", 2.0, softcap=4.0)):
        with kernels.triton_kernels():
            check_linear(there(caller(case)), single, target, case, **SINGLE)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("softcap", [None, 30.0])
@on_device
def test_logits_of_any_size(softcap: float | None) -> None:
    """Classes ruled out by a bias of -inf, and logits whose exponentials overflow."""
    h = torch.tensor([[1.0], [-1.0], [1e4], [0.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[1.0], [-2.0], [300.0], [2.0], [5.0]], dtype=torch.float64)
    bias = torch.zeros(5, dtype=torch.float64)
    if softcap is None:
        bias[1] = -math.inf
    target = torch.tensor([0, 3, 2, 4])
    found = []
    for choice in (True, False):
        h.grad = None
        options: dict[str, Any] = {"linear_bias": bias, "logit_softcap": softcap}
        if choice:
            with kernels.triton_kernels():
                loss = linear_weighted_cross_entropy(h, w, target, weight=Focal(1.0), **options)
        else:
            loss = torch.nn.functional.cross_entropy(
                capped(h @ w.T + bias, softcap), target, reduction="none"
            )
            loss = ((1 - torch.exp(-loss)) * loss).mean()
        loss.backward()
        assert h.grad is not None
        found.append((loss.item(), h.grad.clone()))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.usefixtures("lanes")
@on_device
def test_a_logit_that_is_no_number_shows() -> None:
    h = torch.tensor([[1.0], [math.nan]])
    with kernels.triton_kernels():
        losses = linear_truncated_cross_entropy(
            h, torch.ones(9, 1), torch.tensor([0, 1]), threshold=0.5, reduction="none"
        )
    assert losses[0].item() == pytest.approx(math.log(9), rel=1e-6)  # fp32
    assert losses[1].isnan()


@pytest.mark.usefixtures("lanes")
@on_device
def test_the_entropy_of_a_sure_prediction_keeps_its_digits() -> None:
    """lse - sum p x would have lost them in fp32: 40 against an entropy of 2e-6."""
    h, w = torch.tensor([[1.0]]), torch.tensor([[40.0], [24.0], [0.0]])
    seen = []

    def judge(_: slice, found: chunks.Predictions) -> None:
        seen.append(found.entropy(None).item())

    with kernels.triton_kernels():
        head = chunks.Head(w, None, 1.0, None, torch.float32)
        goals = torch.tensor([0])
        chunks.sweep(head, h, goals, None, judge, None, 4, kernels.softmax_in_use())
    p = torch.softmax(w.double().T, dim=1)
    exact = torch.special.entr(p).sum().item() / math.log(3)
    # log(1 + 1e-7) is known to 1e-7 in fp32, of an entropy of 17 e-7
    assert seen == [pytest.approx(exact, abs=1.2e-7 / math.log(3))]


@on_device
def test_in_the_backward_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from fortifai.losses import triton_softmax

    calls = []
    real = triton_softmax.softmax
    monkeypatch.setattr(
        triton_softmax, "softmax", lambda *args: calls.append(len(args[1])) or real(*args)
    )
    h = torch.randn(5, 3, requires_grad=True)
    w, target = torch.randn(7, 3), torch.arange(5)
    with kernels.triton_kernels():
        losses = linear_weighted_cross_entropy(h, w, target, weight=EAFT(), reduction="none")
    assert calls == [5]
    losses.sum().backward()
    assert calls == [5, 5]
    linear_weighted_cross_entropy(h, w, target, weight=Keep())
    assert calls == [5, 5]


def test_on_the_cpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    h, w = torch.randn(5, 3), torch.randn(7, 3)
    with kernels.triton_kernels(), pytest.raises(InputError, match=r"are on cpu; .* on a GPU"):
        linear_truncated_cross_entropy(h, w, torch.arange(5))


def test_without_triton_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fortifai.losses.triton_softmax", raising=False)
    monkeypatch.setitem(sys.modules, "fortifai.losses.triton_softmax", None)
    with pytest.raises(InputError, match="needs Triton"), kernels.triton_kernels():
        pass
    assert kernels.softmax_in_use() is chunks.softmax
