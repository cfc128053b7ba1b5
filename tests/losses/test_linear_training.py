"""Losses on hidden states inside what trains with them: graphs, checkpoints, compilers, shards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fortifai import linear_weighted_cross_entropy, weighted_cross_entropy
from fortifai.errors import InputError
from fortifai.losses import chunks, linear
from fortifai.weights import EAFT, Focal, Truncate

VOCABULARY, WIDTH = 50, 8
# fp64: sums of a hundred products
EXACT = {"rtol": 1e-10, "atol": 1e-13}
# one function computes its gradients in the forward, the other two again in the backward
WAYS = {
    "at once": {"weight": Truncate(0.03)},
    "by kept": {"weight": Truncate(0.03), "normalize": "kept"},
    "twice": {"weight": Focal(2.0), "normalize": "kept"},
    "entropy": {"weight": EAFT()},
}


class Model(nn.Module):
    """Embedding, a layer, a head; the loss is on hidden states or, for comparison, on logits."""

    def __init__(self, *, tied: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH, dtype=dtype)
        self.body = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=not tied, dtype=dtype)
        if tied:
            self.head.weight = self.embed.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.body(self.embed(tokens)))

    def forward(self, tokens: Tensor, labels: Tensor, whole: bool, **options: object) -> Tensor:
        if whole:
            logits = self.head(self.hidden(tokens)).flatten(0, -2)
            return weighted_cross_entropy(logits, labels.flatten(), **options)
        return linear_weighted_cross_entropy(
            self.hidden(tokens),
            self.head.weight,
            labels,
            linear_bias=self.head.bias,
            chunk_size=7,
            **options,
        )


def data(rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (rows, 9), generator=generator)
    labels = tokens.roll(-1, 1)
    labels[:, -1] = -100
    return tokens, labels


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trained(model: Model, whole: bool, **options: object) -> dict[str, Tensor]:
    model.zero_grad()
    model(*data(), whole, **options).backward()
    return gradients(model)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, object]:
    return WAYS[request.param]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_learns_the_same(way, tied) -> None:
    model = Model(tied=tied)
    torch.testing.assert_close(trained(model, False, **way), trained(model, True, **way), **EXACT)


@pytest.mark.parametrize("frozen", ["head.weight", "head.bias", "embed.weight|body", "head"])
def test_what_is_frozen_gets_no_gradient(way, frozen) -> None:
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(part) for part in frozen.split("|")))
    found = trained(model, False, **way)
    assert not any(name.startswith(part) for name in found for part in frozen.split("|"))
    assert found
    torch.testing.assert_close(found, trained(model, True, **way), **EXACT)


def test_nothing_to_learn(way) -> None:
    model = Model().requires_grad_(False)
    loss = model(*data(), False, **way)
    assert not loss.requires_grad
    model.requires_grad_(True)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(model(*data(), False, **way), loss)


def test_used_twice_in_one_graph(way) -> None:
    """Two losses of one head, one of them scaled: the factor from above is each one's own."""
    results = []
    for whole in (False, True):
        model = Model(tied=True)
        first = model(*data(seed=1), whole, **way)
        second = model(*data(seed=2), whole, **way)
        (0.25 * first - 3 * second * first).backward()
        results.append(gradients(model))
    torch.testing.assert_close(results[0], results[1], **EXACT)


def test_backward_twice(way) -> None:
    """With retain_graph as often as wanted, the same each time; without it PyTorch's own error."""
    model = Model()
    once = trained(model, False, **way)
    model.zero_grad()
    loss = model(*data(), False, **way)
    for times in (1, 2, 3):
        (loss * times).backward(retain_graph=True)
    expected = {name: 6 * g for name, g in once.items()}
    torch.testing.assert_close(gradients(model), expected, **EXACT)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_of_some_inputs_alone(way) -> None:
    model = Model()
    loss = model(*data(), False, **way)
    (found,) = torch.autograd.grad(loss, [model.head.bias], retain_graph=True)
    (again,) = torch.autograd.grad(loss, [model.body.weight])
    expected = trained(model, True, **way)
    torch.testing.assert_close(found, expected["head.bias"], **EXACT)
    torch.testing.assert_close(again, expected["body.weight"], **EXACT)


def test_a_head_that_changed_since_is_told() -> None:
    """Recomputing with another head would be silently wrong; PyTorch's version count sees it."""
    model = Model()
    loss = model(*data(), False, weight=Focal(2.0), normalize="kept")
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_no_second_derivative(way) -> None:
    model = Model()
    loss = model(*data(), False, **way)
    with pytest.raises(InputError, match=r"no second derivative.*weighted_cross_entropy on logits"):
        torch.autograd.grad(loss, [model.body.weight], create_graph=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(way, reentrant) -> None:
    expected = trained(Model(), True, **way)
    model = Model()
    tokens, labels = data()
    hidden = checkpoint(model.hidden, tokens, use_reentrant=False)

    def loss(h: Tensor) -> Tensor:
        return linear_weighted_cross_entropy(
            h, model.head.weight, labels, linear_bias=model.head.bias, **way
        )

    checkpoint(loss, hidden, use_reentrant=reentrant).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)


@pytest.mark.parametrize("way", [WAYS["at once"], WAYS["entropy"]], ids=str)
def test_gradient_accumulation(way) -> None:
    """Sums over ragged micro-batches, each over the labels of all, are the whole batch."""
    tokens, labels = data(6)
    labels[4, 2:] = -100
    whole = Model()
    whole(tokens, labels, True, **way).backward()
    model, items = Model(), (labels != -100).sum()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        loss = model(tokens[part], labels[part], False, reduction="sum", **way)
        (loss / items).backward()
    torch.testing.assert_close(gradients(model), gradients(whole), **EXACT)


def test_autocast(way) -> None:
    """bf16 hidden states and an fp32 head: statistics in fp32, gradients in each one's dtype."""
    model = Model(dtype=torch.float32)
    tokens, labels = data()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(tokens).bfloat16()
        hidden.retain_grad()
        loss = linear_weighted_cross_entropy(
            hidden, model.head.weight, labels, linear_bias=model.head.bias, **way
        )
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    leaf = hidden.detach().double().requires_grad_()
    head = copy.deepcopy(model.head).double()
    head.zero_grad()
    expected = weighted_cross_entropy(head(leaf).flatten(0, -2), labels.flatten(), **way)
    expected.backward()
    # fp32 from what bf16 hidden states say: bf16 products would be off by 2^-9 = 0.002
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(
        model.head.weight.grad.double(), head.weight.grad, rtol=1e-4, atol=1e-7
    )
    # and one rounding to bf16
    torch.testing.assert_close(hidden.grad.double(), leaf.grad, rtol=2**-8, atol=1e-7)


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of half-precision operands with float32 results, which the CPU has not."""

    def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.float16 or a.dtype == b.dtype == torch.bfloat16
        return a.to(dtype) @ b.to(dtype)

    monkeypatch.setattr(chunks, "_wide_product", product)
    monkeypatch.setattr(chunks, "_fused", lambda device: False)
    monkeypatch.setattr(linear, "product_dtype", lambda hidden: hidden.dtype)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_products_in_half_precision(way) -> None:
    torch.manual_seed(0)
    h, w, b = torch.randn(64, 16), torch.randn(40, 16) / 4, torch.randn(40)
    target = torch.randint(0, 40, (64,))
    leaves = [t.bfloat16().requires_grad_() for t in (h, w, b)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    loss = linear_weighted_cross_entropy(
        *leaves[:2], target, linear_bias=leaves[2], chunk_size=9, **way
    )
    expected = weighted_cross_entropy(F.linear(*exact), target, **way)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(leaves, exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        # p - y and the scaled hidden states are rounded to bf16, as in any model of that precision:
        # each product is off by 2^-8, their sum by less than that of its largest term
        size = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2**-7, atol=size * 2**-8)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_the_divisor_is_not_put_into_half_precision() -> None:
    """Scaled hidden states of 1 / 10,000 and less would lose their digits in fp16."""
    torch.manual_seed(0)
    h, w = torch.randn(10_000, 2) / 100, torch.randn(3, 2)
    target = torch.randint(0, 3, (10_000,))
    leaves = [t.half().requires_grad_() for t in (h, w)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    scale = 1000.0  # so that the results are no small numbers themselves
    (linear_weighted_cross_entropy(*leaves, target, weight=Truncate(1.0)) * scale).backward()
    (weighted_cross_entropy(F.linear(*exact), target, weight=Truncate(1.0)) * scale).backward()
    # a rounding to fp16 of each p - y, which cancel in the sum of 10,000, and one of the sum
    torch.testing.assert_close(leaves[1].grad.double(), exact[1].grad, rtol=2**-10, atol=2e-4)


def test_float16_keeps_small_gradients() -> None:
    """Losses are scaled up before the backward, since 1e-8 is 0 in fp16: ours waits for that."""
    torch.manual_seed(0)
    h, w = torch.randn(64, 16).half(), (torch.randn(40, 16) / 4).half()
    target = torch.randint(0, 40, (64,))
    leaves = [t.clone().requires_grad_() for t in (h, w)]
    scale = 2.0**16
    weight = lambda log_p: torch.full_like(log_p, 1e-6)  # noqa: E731
    weight.elementwise = True  # type: ignore[attr-defined]
    loss = linear_weighted_cross_entropy(*leaves, target, weight=weight)
    (loss * scale).backward()
    exact = [t.double().requires_grad_() for t in (h, w)]
    (weighted_cross_entropy(F.linear(*exact), target, weight=weight) * scale).backward()
    for ours, theirs in zip(leaves, exact, strict=True):
        # one rounding to fp16, and its smallest step
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2**-10, atol=2**-24)
        assert (exact[0].grad / scale).abs().max() < 2**-24


# Dynamo looks at .grad of tensors within a graph that broke, and hides the warning unless an error
@pytest.mark.long
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor")
def test_compiled_models(way) -> None:
    model = Model()
    expected = trained(model, False, **way)
    compiled = torch.compile(model, backend="aot_eager")
    for rows in (4, 4, 3):
        model.zero_grad()
        loss = compiled(*data(rows), False, **way)
        loss.backward()
        if rows == 4:
            torch.testing.assert_close(gradients(model), expected, **EXACT)
        torch.testing.assert_close(loss, model(*data(rows), True, **way), **EXACT)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharded_heads() -> None:
    """FSDP2 gathers the head for the forward of the module that owns it: the loss belongs there."""
    from torch.distributed.fsdp import fully_shard

    expected = trained(Model(tied=True), True, weight=Truncate(0.03))
    model = Model(tied=True)
    fully_shard(model)
    model(*data(), False, weight=Truncate(0.03)).backward()
    found = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    torch.testing.assert_close(found, expected, **EXACT)
    # elsewhere it is gathered for the call
    model.reshard()
    model.zero_grad()
    h, target = torch.randn(3, WIDTH, dtype=torch.float64), torch.tensor([0, 1, 2])
    sharded = model.head.weight
    assert hasattr(sharded, "full_tensor")
    linear_weighted_cross_entropy(h, sharded, target, weight=Truncate(0.9)).backward()
    whole = sharded.full_tensor().detach().requires_grad_()
    linear_weighted_cross_entropy(h, whole, target, weight=Truncate(0.9)).backward()
    torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad, **EXACT)
    with pytest.raises(InputError, match=r"input is a DTensor; .*to_local"):
        linear_weighted_cross_entropy(
            sharded, whole, torch.zeros(len(sharded)).long(), weight=Truncate(0.9)
        )


def test_a_wrong_factor_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of graphs fail where gradients are not scaled by what comes from above."""
    from fortifai.losses.chunks import Gradients

    monkeypatch.setattr(Gradients, "scale_", lambda self, factor: None)
    check: Callable[..., None]
    for check in (test_used_twice_in_one_graph, test_backward_twice, test_gradient_accumulation):
        with pytest.raises(AssertionError):
            check(WAYS["at once"])
