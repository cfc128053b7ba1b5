from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fortifai import machine, weighted_cross_entropy
from fortifai.errors import InputError, RunFailed
from fortifai.lab.progress import Silent
from fortifai.models import compiled
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import TrainOptions
from fortifai.models.training import Blocks, FitReport, uses_bf16
from fortifai.weights import Focal, Keep, Truncate, Weight

from .conftest import prose


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> np.ndarray:
    return np.array(tokenizer(prose(3, 900)).input_ids, dtype=np.int32)


@pytest.fixture
def fit(tmp_path: Path, text: np.ndarray) -> Callable[..., FitReport]:
    def run(
        lm: CausalLM,
        weight: Weight | None = None,
        *,
        samples: np.ndarray | None = None,
        seed: int = 0,
        select: Callable[[CausalLM], float] | None = None,
        progress: Any = None,
        **changes: Any,
    ) -> FitReport:
        train = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 4, "block": 32, **changes}
        return lm.fit(
            text if samples is None else samples,
            weight or Keep(),
            TrainOptions.model_validate(train),
            seed=seed,
            workdir=tmp_path / "work",
            select=select,
            progress=progress or Silent(),
        )

    return run


def weights_of(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in lm.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[k], two[k]) for k in one)


def test_it_learns(make, fit, text):
    lm = make()
    before = -lm.log_prob(text).mean()
    report = fit(lm, epochs=4)
    losses = [e["loss"] for e in report.epochs]
    assert losses == sorted(losses, reverse=True)
    assert before == pytest.approx(math.log(len(lm.tokenizer)), abs=0.2)  # nearly uniform at first
    assert -lm.log_prob(text).mean() < before - 1


def test_the_report_adds_up(make, fit, text):
    report = fit(make(), Truncate(0.05), epochs=3)
    rows = len(text) // 32
    assert report.steps == 3 * math.ceil(rows / 4)
    assert report.tokens == 3 * rows * 32
    assert [e["epoch"] for e in report.epochs] == [1, 2, 3]
    assert report.loss == report.epochs[-1]["loss"]
    assert report.truncated_share == pytest.approx(
        np.mean([e["truncated_share"] for e in report.epochs])
    )
    shares = [e["truncated_share"] for e in report.epochs]
    assert shares == sorted(shares)  # the surer the model gets, the more is cut
    assert 0 < shares[-1] < 1
    assert report.seconds > 0


def test_bitwise_repeatable_and_decided_by_the_seed(make, fit):
    runs = []
    for seed in (0, 0, 1):
        lm = make()
        report = fit(lm, Focal(2.0), seed=seed)
        runs.append((weights_of(lm), report.loss, report.epochs))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert not same(runs[0][0], runs[2][0])


def test_weights_decide_what_is_learnt(make, fit):
    start = weights_of(make())
    trained = {}
    for name, weight in (("keep", Keep()), ("part", Truncate(0.01)), ("none", Truncate(0.0))):
        lm = make()
        report = fit(lm, weight)
        trained[name] = weights_of(lm), report
    assert same(trained["none"][0], start)
    assert trained["none"][1].truncated_share == 1
    assert trained["none"][1].loss == 0
    assert trained["keep"][1].truncated_share == 0
    assert not same(trained["keep"][0], trained["part"][0])


@pytest.mark.parametrize(
    "terms",
    [{"label_smoothing": 0.2}, {"confidence_penalty": 0.3}, {"z_loss": 0.1}, {"gem_beta": 0.7}],
)
def test_terms_of_the_configuration_are_in_the_loss(make, fit, text, terms):
    """The mean loss of the first step, from the logits of the model that it began with."""
    lm = make()
    rows = torch.from_numpy(text[: 8 * 16].astype(np.int64)).view(8, 16)
    with torch.no_grad():
        logits = lm.model(input_ids=rows).logits[:, :-1].flatten(0, 1)
    expected = weighted_cross_entropy(logits, rows[:, 1:].flatten(), weight=Keep(), **terms)
    report = fit(lm, Keep(), epochs=1, samples=text[: 8 * 16], batch_size=8, block=16, **terms)
    assert report.steps == 1
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)


def test_one_step_is_adamw_on_clipped_cross_entropy(make, fit, text):
    """The whole of Trainer's step against a step written out by hand."""
    lm, reference = make(), make()
    samples = text[: 4 * 32]
    report = fit(lm, epochs=1, samples=samples, max_grad_norm=0.1, weight_decay=0.3)
    ids = torch.from_numpy(samples.astype(np.int64)).view(4, 32)
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=3e-3, weight_decay=0.0)
    logits = reference.model(input_ids=ids).logits
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 0.1)
    with torch.no_grad():  # decoupled decay, on matrices alone as is usual
        for name, p in reference.model.named_parameters():
            p *= 1 - 3e-3 * 0.3 * ("norm" not in name)
    optimizer.step()
    assert report.loss == pytest.approx(loss.item(), abs=1e-5)
    assert report.steps == 1
    got, expected = weights_of(lm), weights_of(reference)
    for name in expected:
        # Adam's first step is lr x sign of the gradient where that is not small against eps, so a
        # rounding of the gradient shows at 1e-3 of lr; another loss, decay or clip shows at 1e-1.
        np.testing.assert_allclose(got[name], expected[name], atol=3e-5, rtol=0)


def test_accumulation_changes_nothing_but_the_memory(make, fit, text):
    samples = text[: 8 * 32]
    whole, parts = make(), make()
    # Plain steps, all of one size: one epoch of one step, of which Adam sees the sign alone
    one = fit(whole, Truncate(0.9), epochs=1, samples=samples, batch_size=8)
    two = fit(
        parts, Truncate(0.9), epochs=1, samples=samples, batch_size=2, gradient_accumulation=4
    )
    assert one.steps == two.steps == 1
    assert one.loss == pytest.approx(two.loss, abs=1e-5)
    for name, value in weights_of(whole).items():
        np.testing.assert_allclose(parts.model.state_dict()[name], value, atol=1e-4, rtol=0)


def test_blocks_leave_out_what_does_not_fill_one():
    blocks = Blocks(np.arange(70, dtype=np.int32), 32)
    assert blocks.rows.shape == (2, 32)
    assert torch.equal(blocks.rows.flatten(), torch.arange(64))
    assert torch.equal(blocks[1], torch.arange(32, 64))
    assert torch.equal(blocks.__getitems__([1, 0]), blocks.rows.flip(0))
    assert Blocks(np.arange(20, dtype=np.int32), 32).rows.shape == (1, 20)


class TestSelect:
    def test_the_best_epoch_is_put_back(self, make, fit):
        lm, seen = make(), []
        wanted = iter([1.0, 5.0, 5.0, 2.0])

        def select(model: CausalLM) -> float:
            assert model is lm
            seen.append(weights_of(model))
            return next(wanted)

        report = fit(lm, epochs=4, select=select, checkpoint="best_held_out")
        assert same(weights_of(lm), seen[1])
        assert not same(seen[1], seen[2])
        assert [e["score"] for e in report.epochs] == [1, 5, 5, 2]
        assert [e["kept"] for e in report.epochs] == [True, True, False, False]

    def test_a_score_that_is_no_number_never_wins(self, make, fit):
        lm, seen = make(), []
        wanted = iter([math.nan, 1.0, math.nan])

        def select(model: CausalLM) -> float:
            seen.append(weights_of(model))
            return next(wanted)

        fit(lm, epochs=3, select=select, checkpoint="best_kr")
        assert same(weights_of(lm), seen[1])

    def test_selecting_does_not_change_the_training(self, make, fit, text):
        plain, selected = make(), make()
        fit(plain, epochs=3)
        scores = iter([1.0, 2.0, 3.0])

        def select(model: CausalLM) -> float:
            model.log_prob(text)
            torch.rand(5)
            np.random.rand(5)  # noqa: NPY002 - the global one is what it must not disturb
            return next(scores)

        fit(selected, epochs=3, select=select, checkpoint="best_held_out")
        assert same(weights_of(plain), weights_of(selected))

    def test_last_does_not_call_it(self, make, fit):
        def select(model: CausalLM) -> float:
            raise AssertionError

        fit(make(), epochs=1, select=select)

    def test_without_anything_to_select_by_it_is_refused(self, make, fit):
        with pytest.raises(InputError, match="nothing to select by"):
            fit(make(), checkpoint="best_kr")


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_do(make, fit):
    lm = make()
    after = iter(range(100))

    def burst(*_: Any) -> None:
        if next(after) == 4:
            with torch.no_grad():
                lm.model.lm_head.weight.fill_(float("inf"))

    lm.model.register_forward_pre_hook(burst)
    with pytest.raises(RunFailed, match=r"became nan at step 5; lower train.learning_rate"):
        fit(lm)


def test_losses_looked_at_late_still_name_their_step(make, fit, monkeypatch):
    # as on an accelerator: several steps pass before anybody looks
    lm = make()
    monkeypatch.setattr("fortifai.models.training._looks_each_step", lambda device: False)
    after = iter(range(100))

    def burst(*_: Any) -> None:
        if next(after) == 4:
            with torch.no_grad():
                lm.model.lm_head.weight.fill_(float("nan"))

    lm.model.register_forward_pre_hook(burst)
    with pytest.raises(RunFailed, match="became nan at step 5;"):
        fit(lm)


def test_progress_is_told_after_each_step(make, fit, text):
    heard: list[tuple[str, int, int, int]] = []

    class Listener:
        def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
            heard.append((stage, done, total, tokens))

    report = fit(make(), progress=Listener())
    assert [h[1] for h in heard] == list(range(1, report.steps + 1))
    assert {(h[0], h[2]) for h in heard} == {("train", report.steps)}
    assert heard[-1][3] == report.tokens


def test_it_leaves_nothing_behind(make, fit, tmp_path, capfd):
    lm = make()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - Trainer seeds the global one, and must not be felt
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    use_cache = lm.model.config.use_cache
    fit(lm)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert lm.model.config.use_cache == use_cache
    assert not lm.model.training
    assert all(p.grad is None for p in lm.model.parameters())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_and_warm_up_shape_the_rate(make, fit, monkeypatch, schedule):
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    report = fit(make(), schedule=schedule, warmup_share=0.25)
    n = report.steps
    warm = math.ceil(n / 4)
    assert len(rates) == n
    np.testing.assert_allclose(rates[:warm], [3e-3 * t / warm for t in range(warm)], rtol=1e-6)
    left = [(t - warm) / (n - warm) for t in range(warm, n)]
    expected = {
        "constant": [1.0 for _ in left],
        "linear": [1 - x for x in left],
        "cosine": [(1 + math.cos(math.pi * x)) / 2 for x in left],
    }[schedule]
    np.testing.assert_allclose(rates[warm:], [3e-3 * e for e in expected], rtol=1e-6, atol=1e-12)


def test_bf16_autocast_keeps_fp32_weights(make, fit, monkeypatch):
    # without the instructions it takes longer, and gives the same
    monkeypatch.setattr(compiled, "bf16_on_cpu", lambda: True)
    lm = make()
    report = fit(lm, precision="bf16", epochs=1)
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert math.isfinite(report.loss)
    other = make()
    fit(other, precision="fp32", epochs=1)
    assert not same(weights_of(lm), weights_of(other))  # it did change the arithmetic


def test_auto_precision_is_fp32_on_a_cpu():
    assert not uses_bf16(TrainOptions(), torch.device("cpu"))
    assert uses_bf16(TrainOptions(precision="bf16"), torch.device("cpu"))


def test_bf16_is_refused_on_a_processor_without_it(make, fit, monkeypatch):
    monkeypatch.setattr(compiled, "bf16_on_cpu", lambda: False)
    with pytest.raises(InputError, match="no instructions for bfloat16"):
        fit(make(), precision="bf16")
    # those of a GPU are asked of nobody
    compiled.check(TrainOptions(precision="bf16"), torch.device("cuda"))


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
    ],
)
def test_which_processors_have_bf16(monkeypatch, told, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert machine.bf16_on_cpu() is has


@pytest.mark.parametrize("has", [False, True])
def test_which_processors_have_bf16_by_an_older_pytorch(monkeypatch, has):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)
    assert machine.bf16_on_cpu() is has


@pytest.mark.parametrize("size", [0, 1])
def test_a_stream_without_anything_to_predict_is_refused(make, fit, size):
    with pytest.raises(InputError, match="at least 2"):
        fit(make(), samples=np.zeros(size, dtype=np.int32))


def test_a_block_longer_than_the_model_is_refused(make, fit):
    with pytest.raises(InputError, match="the model reads 64"):
        fit(make(), block=65)
