"""LoRA in the laboratory: what is trained, merged, carried on and stored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from fortifai.errors import InputError, RunFailed
from fortifai.lab.progress import Silent
from fortifai.models import low_rank, training
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import CausalLMFamily
from fortifai.models.options import LoraOptions, RegenerateOptions, TrainOptions
from fortifai.text.spec import TextArm
from fortifai.weights import Keep, Truncate

# peft asks transformers by the old name of a property
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TRAIN = TrainOptions(
    epochs=2, learning_rate=1e-2, batch_size=4, block=16, lora=LoraOptions(r=4, alpha=8)
)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def state(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in lm.model.state_dict().items()}


def with_lora(**changes) -> TrainOptions:
    return TRAIN.model_copy(update={"lora": LoraOptions(**{"r": 4, "alpha": 8} | changes)})


@pytest.fixture
def fit(stream, tmp_path):
    def run(lm: CausalLM, train: TrainOptions = TRAIN, *, seed=0, select=None, **how):
        return lm.fit(
            stream, Truncate(0.9), train, seed=seed, workdir=tmp_path / "work", select=select,
            progress=Silent(), **how,
        )  # fmt: skip

    return run


def test_the_merged_model_is_the_base_plus_the_product(make, fit):
    lm = make(seed=1)
    before = state(lm)
    report = fit(lm)
    after = state(lm)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.split(".")[-2] in LAYERS}
    a = {k: v for k, v in report.adapter.weights.items() if "lora_A" in k}
    assert len(a) == 14  # seven layers, twice: no output layer
    for key, value in a.items():
        assert value.shape[0] == 4
        product = 8 / 4 * report.adapter.weights[key.replace("lora_A", "lora_B")] @ value
        name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        # float32 sums of four products
        torch.testing.assert_close(after[name], before[name] + product, rtol=1e-5, atol=1e-6)
    assert type(lm.model).__name__ == "LlamaForCausalLM"
    assert all(p.requires_grad for p in lm.model.parameters())


def test_it_trains_as_peft_by_itself_does(make, stream, fit):
    """One step against a loop of AdamW over peft's own model, from the same A and B = 0."""
    train = TRAIN.model_copy(update={"epochs": 1, "batch_size": 13, "max_grad_norm": 0.0})
    lm, plain = make(seed=1), make(seed=1)
    report = fit(lm, train, seed=5)
    torch.manual_seed(5)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": list(LAYERS), "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(plain.model, PeftConfig(**chosen))
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    rows = torch.from_numpy(stream[: 13 * 16].astype(np.int64).reshape(13, 16))
    logits = theirs(input_ids=rows).logits[:, :-1]
    log_p = torch.log_softmax(logits, -1).gather(-1, rows[:, 1:, None])[..., 0]
    loss = -torch.where(log_p < np.log(0.9), log_p, 0.0).mean()
    loss.backward()
    optimizer.step()
    assert report.steps == 1
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)  # sums in another order
    for key, value in report.adapter.weights.items():
        named = dict(theirs.named_parameters())[key.replace(".weight", ".default.weight")]
        # Adam's first step is the sign of the gradient: 1e-2 where it is not nearly 0
        assert ((value - named).abs() < 1e-4).float().mean() > 0.99


def value_and_gradients(layer, x, wanted):
    """The gradients are of a sum whose terms have factors of their own."""
    out = layer(x)
    factors = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * factors).sum(), wanted)]


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_what_pefts_layer_does(bias):
    """Value and gradients in float64 against peft's own forward, whose products are as exact."""
    torch.manual_seed(0)
    config = PeftConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False)
    wrapped = get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4, bias=bias)), config)
    wrapped = wrapped.double()
    layer = wrapped.base_model.model[0]
    x = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    expected = value_and_gradients(layer, x, wanted)
    with low_rank.in_few_passes(wrapped):
        assert "_LowRank" in layer(x).grad_fn.name()
        for one, other in zip(value_and_gradients(layer, x, wanted), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # peft's own casts
            assert wrapped.float()(x.float()).dtype == torch.bfloat16
    assert "_LowRank" not in layer(x.float()).grad_fn.name()


class Gated(torch.nn.Module):
    """As the models of many families have it; `down` says what the inner layer is read as."""

    def __init__(self, act, bias, down=lambda inner: inner):
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(5, 8, bias=bias) for _ in range(2))
        self.down_proj = torch.nn.Linear(8, 5, bias=bias)
        self.act_fn, self.down = act, down

    def forward(self, x):
        return self.down_proj(self.down(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", [torch.nn.SiLU(), torch.nn.GELU("tanh")])
def test_a_gated_layer_computes_what_it_does_by_itself(act, bias):
    torch.manual_seed(0)
    config = PeftConfig(r=3, lora_alpha=7, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(torch.nn.Sequential(Gated(act, bias)), config).double()
    layer = wrapped.base_model.model[0]
    x = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(p for p in wrapped.parameters() if p.requires_grad)]
    assert len(wanted) == 7
    expected = value_and_gradients(layer, x, wanted)
    with low_rank.in_few_passes(wrapped):
        assert "_Gated" in layer(x).grad_fn.name()
        for one, other in zip(value_and_gradients(layer, x, wanted), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert "_Gated" not in layer(x).grad_fn.name()


@pytest.mark.parametrize("down", [torch.nn.LayerNorm(8), torch.nn.Dropout(0.5), torch.abs])
def test_a_layer_that_only_looks_gated_is_left_alone(down):
    torch.manual_seed(0)
    config = PeftConfig(r=3, target_modules=["gate_proj", "up_proj", "down_proj"])
    wrapped = get_peft_model(torch.nn.Sequential(Gated(torch.nn.SiLU(), False, down)), config)
    with low_rank.in_few_passes(wrapped):
        assert "_Gated" not in wrapped(torch.randn(2, 6, 5)).grad_fn.name()


def test_a_gated_layer_that_reads_more_than_x_is_left_alone():
    class Routed(Gated):
        def forward(self, x, share):
            return super().forward(x) * share

    layer = Routed(torch.nn.SiLU(), False)
    config = PeftConfig(r=3, target_modules=["gate_proj", "up_proj", "down_proj"])
    wrapped = get_peft_model(layer, config)
    with low_rank.in_few_passes(wrapped):
        x = torch.randn(2, 6, 5)
        torch.testing.assert_close(wrapped(x, 0.5), wrapped(x, 1.0) / 2)


def test_dropout_is_left_to_peft(make, fit, monkeypatch):
    used = []
    ours = low_rank._forward
    monkeypatch.setattr(low_rank, "_forward", lambda *args: used.append(1) or ours(*args))
    fit(make(seed=1), with_lora(dropout=0.1))
    assert not used
    fit(make(seed=1), with_lora())
    assert used


@pytest.mark.long
@pytest.mark.parametrize(("size", "at_once"), [(1, 1), (3, 3), (5, 4), (12, 6)])
def test_pieces_of_a_batch_are_the_batch(make, fit, monkeypatch, size, at_once):
    """Never more than half of its rows; against the same batch gathered by accumulation alone."""
    train = TRAIN.model_copy(update={"batch_size": 12, "epochs": 3})
    rows = {"batch_size": 2, "gradient_accumulation": 6}
    whole, pieces = make(seed=1), make(seed=1)
    first = fit(whole, train.model_copy(update=rows))
    monkeypatch.setattr(training, "TOKENS_AT_ONCE", size * 16)
    seen = []
    pieces.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    second = fit(pieces, train)
    assert max(seen[1:]) == at_once  # the first is the trainer's trial
    assert first.steps == second.steps == 6  # 13 rows: a batch of 12 and one of 1
    assert first.loss == pytest.approx(second.loss, rel=1e-4)
    for name, value in state(whole).items():
        # Adam divides by gradients that are nearly 0, where the order of sums is felt
        torch.testing.assert_close(state(pieces)[name], value, rtol=0, atol=2e-3)


def test_few_numbers_are_trained_and_kept(make, fit, monkeypatch):
    """Neither gradients nor copies of the weights, with the best checkpoint selected."""
    lm = make(seed=1)
    seen: list[set[str]] = []
    step = training._Watch.on_epoch_end

    def look(self, *args, **kwargs):
        with_gradient = {n for n, p in self.model.named_parameters() if p.requires_grad}
        step(self, *args, **kwargs)
        seen.extend([with_gradient, set(self.best[1])])

    monkeypatch.setattr(training._Watch, "on_epoch_end", look)
    scores = iter([3.0, 5.0, 4.0])
    states: list[float] = []

    def select(model):
        states.append(float(model.log_prob(np.arange(1, 40)).sum()))
        return next(scores)

    train = TRAIN.model_copy(update={"epochs": 3, "checkpoint": "best_held_out"})
    fit(lm, train, select=select)
    assert len(seen) == 6
    assert all("lora_" in name for names in seen for name in names)
    # the second epoch's weights, merged: what it said unmerged, to rounding
    assert float(lm.log_prob(np.arange(1, 40)).sum()) == pytest.approx(states[1], rel=1e-5)
    assert abs(states[1] - states[2]) > 1e-3


def test_the_seed_decides(make, fit):
    one, same, other = make(seed=1), make(seed=1), make(seed=1)
    torch.manual_seed(1)
    fit(one, with_lora(dropout=0.2), seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    fit(same, with_lora(dropout=0.2), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    fit(other, with_lora(dropout=0.2), seed=4)
    first, second, third = state(one), state(same), state(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_targets_and_modules_to_save(make, fit):
    lm = make(seed=1)
    before = state(lm)
    report = fit(lm, with_lora(targets=("q_proj", "v_proj"), modules_to_save=("lm_head",)))
    changed = {n for n, v in state(lm).items() if not torch.equal(v, before[n])}
    assert {n.split(".")[-2] for n in changed} == {"q_proj", "v_proj", "lm_head"}
    assert report.adapter.weights["base_model.model.lm_head.weight"].shape == (296, 32)


def test_settings_that_do_not_fit_are_told(make, fit, tokenizer):
    lm = make(seed=1)
    before = state(lm)
    for how, says in (
        ({"targets": ("query",)}, "targets names query.*it has .*q_proj"),
        ({"targets": ("lm_head",)}, "targets names lm_head"),
        ({"modules_to_save": ("head",)}, "modules_to_save names head.*lm_head"),
    ):
        with pytest.raises(InputError, match=says):
            fit(lm, with_lora(**how))
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    with pytest.raises(InputError, match=r"embed_tokens, whose weights are those of.*leave it out"):
        fit(lm, with_lora(modules_to_save=("embed_tokens",)))
    assert list(state(lm)) == list(before)


def test_a_failed_fit_leaves_the_model_as_it_was(make, fit):
    lm = make(seed=1)
    before = state(lm)

    def fail(model):
        raise RunFailed("no")

    with pytest.raises(RunFailed):
        fit(lm, TRAIN.model_copy(update={"checkpoint": "best_held_out"}), select=fail)
    after = state(lm)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_without_peft_it_is_told(make, fit, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"train.lora needs the package peft.*fortifai\[peft\]"):
        fit(make(seed=1))


def test_an_adapter_is_carried_from_the_last_generation_alone():
    family = {"kind": "causal_lm", "base": "x"}
    train = {"lora": {"carry": True}}
    TextArm.model_validate({"family": family, "train": train})
    for start in ("base", "scratch"):
        with pytest.raises(ValidationError, match="carry trains on the adapter of"):
            TextArm.model_validate({"family": family, "train": train, "init_from": start})


# --- in the loop ------------------------------------------------------------------------------


@pytest.fixture
def family(make, tmp_path):
    base = make(seed=1)
    base.save(tmp_path / "shared" / "base")

    def new(**changes) -> CausalLMFamily:
        return CausalLMFamily(
            base=tmp_path / "shared" / "base",
            scratch=lambda seed: make(seed=seed),
            weight=Keep(),
            train=with_lora(**changes),
            regenerate=RegenerateOptions(context=12, new_tokens=7),
            select=None,
            workdir=tmp_path / "work",
            special=base.special,
        )

    return new


def kinds(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} & {"adapter_model.safetensors", "model.safetensors"}


def go(family, model, stream, folder: Path, generation: int):
    told = model.fit(stream, seed=generation, progress=Silent())
    assert "adapter" not in told
    model.save(folder / f"generation-{generation}" / "model")
    return folder / f"generation-{generation}" / "model"


@pytest.mark.long
@pytest.mark.parametrize("carry", [False, True])
def test_taken_up_again_it_is_the_same(family, stream, tmp_path, carry):
    """Three generations in memory, and each from what the one before has stored: equal files."""
    chosen = family(carry=carry, dropout=0.1)
    model = chosen.create("base", seed=0)
    straight = [go(chosen, model, stream, tmp_path / "straight", g) for g in range(3)]
    model = chosen.create("base", seed=0)
    resumed = []
    for generation in range(3):
        resumed.append(go(chosen, model, stream, tmp_path / "resumed", generation))
        model = chosen.load(resumed[-1])
    whole = {"model.safetensors"}
    adapter = {"adapter_model.safetensors"}
    assert [kinds(f) for f in straight] == [adapter, *([adapter] * 2 if carry else [whole] * 2)]
    for one, other in zip(straight, resumed, strict=True):
        files = sorted(p.name for p in one.iterdir())
        assert files == sorted(p.name for p in other.iterdir())
        for name in files:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_weights_that_were_changed_are_stored_whole(family, stream, tmp_path):
    """An adapter of the base no longer says what they are; a plain fit trains one and merges it."""
    chosen = family()
    model = chosen.create("base", seed=0)
    model.fit(stream, seed=0, progress=Silent())
    before = {name: theta.clone() for name, theta in model.weights().items()}
    model.fit_plainly(stream, 1, seed=1, progress=Silent())
    after = dict(model.weights())
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    model.save(tmp_path / "model")
    assert kinds(tmp_path / "model") == {"model.safetensors"}
    expected = model.log_prob(stream)
    np.testing.assert_array_equal(chosen.load(tmp_path / "model").log_prob(stream), expected)


@pytest.mark.long
def test_a_carried_adapter_goes_on_and_a_new_one_begins(family, stream, tmp_path):
    carried, base = family(carry=True), family()
    model = carried.create("base", seed=0)
    first = model.fit(stream, seed=0, progress=Silent())["loss"]
    before = model.adapter
    assert model.fit(stream, seed=1, progress=Silent())["loss"] < first - 0.05
    # after a generation every B has left 0, and A is nearly the same A: it is one adapter
    key = next(k for k in before.weights if "lora_A" in k)
    near = torch.nn.functional.cosine_similarity(
        before.weights[key].ravel(), model.adapter.weights[key].ravel(), dim=0
    )
    assert near > 0.8
    again = [base.create("base", seed=0) for _ in range(2)]
    losses = [m.fit(stream, seed=0, progress=Silent())["loss"] for m in again]
    assert losses[0] == losses[1] == first  # init_from: base knows nothing of generations before


def test_an_adapter_needs_its_base_and_finds_it(family, stream, tmp_path):
    chosen = family()
    model = chosen.create("base", seed=0)
    saved = go(chosen, model, stream, tmp_path / "arms" / "a", 0)
    size = sum(p.stat().st_size for p in saved.iterdir())
    assert size < sum(p.stat().st_size for p in chosen.base.iterdir()) / 2
    for load in (CausalLM.load, CausalLM.from_base):
        lm = load(saved, device="cpu")
        lm.block = 16
        assert (lm.log_prob(stream) == model.log_prob(stream)).all()
    told = json.loads((saved / "adapter_config.json").read_text())
    assert not Path(told["base_model_name_or_path"]).is_absolute()
    (tmp_path / "run").mkdir()
    for part in ("arms", "shared"):  # the whole run at another place
        (tmp_path / part).rename(tmp_path / "run" / part)
    moved = tmp_path / "run" / saved.relative_to(tmp_path)
    assert (CausalLM.load(moved).log_prob(stream) == model.log_prob(stream)).all()


def test_an_adapter_of_peft_is_read(make, stream, tmp_path):
    lm = make(seed=1)
    lm.save(tmp_path / "base")
    torch.manual_seed(0)
    wrapped = get_peft_model(lm.model, PeftConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = CausalLM(lm.model, lm.tokenizer, device="cpu").log_prob(stream)
    wrapped.peft_config["default"].base_model_name_or_path = "../base"
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    found = CausalLM.from_base(tmp_path / "adapter", device="cpu").log_prob(stream)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # merged, in float32


def broken(change):
    def apply(folder: Path) -> None:
        weights = change(load_file(folder / "adapter_model.safetensors"))
        save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})

    return apply


def told(**changes):
    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def torn(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


BROKEN = {
    "a weight lost": (broken(lambda w: dict(list(w.items())[1:])), "is missing"),
    "a weight too many": (broken(lambda w: w | {"x.y": torch.ones(1)}), "x.y has no place"),
    "other shapes": (
        broken(lambda w: {k: torch.cat([v, v]).contiguous() for k, v in w.items()}),
        "does not fit",
    ),
    "no base": (told(base_model_name_or_path=None), "does not name its base model"),
    "another base": (told(base_model_name_or_path="no/such"), "no/such"),
    "another kind": (told(peft_type="PROMPT_TUNING", num_virtual_tokens=3), "adapter"),
    "torn": (torn, "could not be read"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "could not be read"),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused(kind, family, stream, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = family()
    saved = go(chosen, chosen.create("base", seed=0), stream, tmp_path / "a", 0)
    spoil, says = BROKEN[kind]
    spoil(saved)
    with pytest.raises(InputError, match=says) as error:
        CausalLM.load(saved, device="cpu")
    assert "\n" not in str(error.value)


def test_the_block_is_kept_with_an_adapter(family, stream, tmp_path):
    chosen = family()
    saved = go(chosen, chosen.create("base", seed=0), stream, tmp_path / "a", 0)
    assert CausalLM.load(saved, device="cpu").block == 16
