"""The loss inside models of transformers and PEFT, against the models' own logits."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModelForSeq2SeqLM, LlamaForCausalLM, T5Config

from fortifai.errors import InputError
from fortifai.integrations.hidden_states import HiddenStateLoss, causal_model, detach
from fortifai.weights import EAFT, Focal, Keep, Truncate

from .tiny import CONFIGS, VOCABULARY, batch_of, build, furthest, ragged

# transformers 5.23 renames it for version 6; PEFT 0.21 uses the old name, and so do we, for 5.0
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated:FutureWarning"
)

BATCH = batch_of(ragged(3))
WEIGHTS = [Keep(), Truncate(0.05), Focal(2.0)]


def of_logits(model: nn.Module, batch: dict[str, torch.Tensor], weight: Any) -> torch.Tensor:
    """The loss by hand from the model's own logits, in fp64."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits[:, :-1].double()
    labels = batch["labels"][:, 1:]
    nll = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    p = torch.exp(-nll)
    if isinstance(weight, Truncate):
        nll = nll * (p <= weight.threshold)
    elif isinstance(weight, Focal):
        nll = nll * (1 - p) ** weight.gamma
    return nll[labels != -100].sum() / (labels != -100).sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_what_its_logits_give(name: str) -> None:
    """Loss and all gradients; fp32 against fp64, where sums of some hundred terms lose 1e-6."""
    model = build(name).eval()
    for weight in WEIGHTS:
        expected = of_logits(model, BATCH, weight)
        expected.backward()
        by_logits = gradients(model)
        assert max(g.abs().max() for g in by_logits.values()) > 0.01
        value = HiddenStateLoss(model, weight)(model, BATCH)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=2e-6)
        assert furthest(gradients(model), by_logits) < 2e-6


def test_the_kept_share_is_by_hand() -> None:
    model = build("gemma2").eval()
    labels = BATCH["labels"][:, 1:]
    with torch.no_grad():
        p = model(input_ids=BATCH["input_ids"]).logits[:, :-1].softmax(-1)
    of_labels = p.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)[labels != -100]
    compute = HiddenStateLoss(model, threshold=1 / VOCABULARY)
    with torch.no_grad():
        compute(model, BATCH)
    assert math.isnan(compute.pop_kept_share())  # nothing was trained on
    for _ in range(2):
        compute(model, BATCH)
    share = (of_labels <= 1 / VOCABULARY).double().mean().item()
    assert 0 < share < 1
    assert compute.pop_kept_share() == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("normalize", ["valid", "kept"])
def test_divisors(normalize: str) -> None:
    model = build().eval()
    weight = Truncate(0.05)
    mean = of_logits(model, BATCH, weight).item()
    compute = HiddenStateLoss(model, weight, normalize=normalize)
    valid = int((BATCH["labels"][:, 1:] != -100).sum())
    value = compute(model, BATCH).item()
    expected = mean if normalize == "valid" else mean / compute.pop_kept_share()
    assert value == pytest.approx(expected, rel=2e-6)  # fp32
    for items in (4 * valid, torch.tensor(4 * valid)):
        assert compute(model, BATCH, items).item() == pytest.approx(value / 4, rel=1e-6)


def test_a_weight_of_the_entropy() -> None:
    model = build().eval()
    value = HiddenStateLoss(model, EAFT(top_k=None))(model, BATCH)
    logits = model(input_ids=BATCH["input_ids"]).logits[:, :-1].double()
    p = logits.softmax(-1)
    labels = BATCH["labels"][:, 1:]
    entropy = -(p * p.log()).sum(-1) / math.log(VOCABULARY)
    nll = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = (entropy * nll)[labels != -100].mean()
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)  # fp32


def test_the_logits_are_never_made() -> None:
    """No tensor that autograd keeps for the backward is as large as they are."""
    model = build()
    rows, length = 4, 600  # of 37 classes: more than the loss handles at once, at 128 rows
    ids = torch.randint(3, VOCABULARY, (rows, length // 10))
    compute = HiddenStateLoss(model, threshold=0.5)
    shapes: list[torch.Size] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: shapes.append(t.shape) or t, lambda t: t
    )
    with hooks:
        compute(model, {"input_ids": ids, "labels": ids}).backward()
    assert shapes
    activations = [s for s in shapes if s.numel() >= ids.numel() * VOCABULARY]
    assert all(VOCABULARY not in s for s in activations)
    assert model(input_ids=ids).logits.shape == (*ids.shape, VOCABULARY)  # when they are wanted


def test_labels_that_stand_in_place_already() -> None:
    model = build().eval()
    compute = HiddenStateLoss(model, Focal())
    moved = F.pad(BATCH["labels"], (0, 1), value=-100)[:, 1:]
    inputs = {"input_ids": BATCH["input_ids"], "shift_labels": moved}
    assert compute(model, inputs).item() == compute(model, BATCH).item()
    both = {**inputs, "labels": torch.zeros_like(moved)}
    assert compute(model, both).item() == compute(model, BATCH).item()


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_padding_left_or_right(name: str) -> None:
    """Sums in another order: fp32 rounding."""
    compute_of: dict[str, tuple[float, dict[str, torch.Tensor]]] = {}
    rows = [torch.arange(3, 3 + n) for n in (4, 7, 9)]
    for side in ("left", "right"):
        model = build(name).eval()
        padded = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        batch = {
            k: torch.stack(
                [
                    F.pad(
                        torch.ones_like(r) if k == "attention_mask" else r,
                        (9 - len(r), 0) if side == "left" else (0, 9 - len(r)),
                        value=value,
                    )
                    for r in rows
                ]
            )
            for k, value in padded.items()
        }
        first = batch["attention_mask"].argmax(1, keepdim=True)
        batch["labels"].scatter_(1, first, -100)  # on the left a padding would foretell it
        # models count positions from the mask only when asked: as generate does
        if name == "llama":
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        value = HiddenStateLoss(model, Truncate(0.05))(model, batch)
        value.backward()
        compute_of[side] = value.item(), gradients(model)
    left, right = compute_of["left"], compute_of["right"]
    assert left[0] == pytest.approx(right[0], rel=1e-6)
    assert furthest(left[1], right[1]) < 1e-6


def test_rows_in_one_as_rows_apart() -> None:
    """Packed, with positions that start anew and the first label of each left out."""
    rows = [torch.arange(3, 3 + n) for n in (4, 7, 9)]
    results = []
    for packed in (False, True):
        model = build().eval()
        compute = HiddenStateLoss(model, Truncate(0.05))
        if packed:
            labels = torch.cat([F.pad(r[1:], (1, 0), value=-100) for r in rows])[None]
            inputs = {
                "input_ids": torch.cat(rows)[None],
                "position_ids": torch.cat([torch.arange(len(r)) for r in rows])[None],
                "labels": labels,
                "use_cache": False,  # transformers sees packed rows only without
            }
            compute(model, inputs, 17).backward()
        else:
            for row in rows:
                compute(model, {"input_ids": row[None], "labels": row[None]}, 17).backward()
        results.append((compute.pop_kept_share(), gradients(model)))
    assert results[0][0] == results[1][0]
    assert furthest(results[0][1], results[1][1]) < 1e-6  # fp32, sums in another order


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    results = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        HiddenStateLoss(model, Focal())(model, {**BATCH, "use_cache": False}).backward()
        results.append(gradients(model))
    assert furthest(*results) == 0  # the same operations, some of them twice


def test_bf16_autocast_is_as_near_as_on_logits() -> None:
    model = build().eval()
    exact = of_logits(model, BATCH, Focal())
    exact.backward()
    truth = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        of_logits(model, BATCH, Focal()).backward()
        on_logits = gradients(model)
        value = HiddenStateLoss(model, Focal())(model, BATCH)
    assert value.dtype == torch.float32
    value.backward()
    # the body's error is in both; the output layer's own is smaller in ours
    assert furthest(gradients(model), truth) < 1.5 * furthest(on_logits, truth)


def test_a_model_in_bf16() -> None:
    model = build().eval().to(torch.bfloat16)
    value = HiddenStateLoss(model, Focal())(model, BATCH)
    value.backward()
    with torch.no_grad():
        expected = of_logits(model, BATCH, Focal()).item()
    assert value.item() == pytest.approx(expected, rel=1e-2)  # logits in bf16: 8 bits


def test_a_frozen_head_gets_no_gradient_and_changes_no_other() -> None:
    results = []
    for frozen in (False, True):
        model = build().eval()
        model.lm_head.weight.requires_grad_(not frozen)
        HiddenStateLoss(model, Focal())(model, BATCH).backward()
        results.append(gradients(model))
    assert "lm_head.weight" in results[0]
    results[0].pop("lm_head.weight")
    assert furthest(*results) == 0


@pytest.mark.long
# torch looks at what a graph continues with, and warns of what it sees itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled() -> None:
    """Without a compiler: the graphs are traced and run as they are."""
    model = build().eval()
    compiled = torch.compile(model, backend="aot_eager")
    value = HiddenStateLoss(compiled, Focal())(compiled, BATCH)
    value.backward()
    traced = gradients(model)
    HiddenStateLoss(model, Focal())(model, BATCH).backward()
    assert furthest(traced, gradients(model)) < 1e-6  # fp32, perhaps in another order
    torch._dynamo.reset()


LORA = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
ADAPTERS = {
    "lora": peft.LoraConfig(target_modules=["q_proj", "v_proj"], **LORA),
    "lora and a copy of the head": peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"], **LORA
    ),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


# peft 0.21 hands its prefix over by the name that transformers had before 5.24
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(build(), copy.deepcopy(ADAPTERS[name])).eval()
    batch = {**BATCH, "attention_mask": torch.ones_like(BATCH["labels"])}
    value = HiddenStateLoss(model, Keep())(model, batch)
    value.backward()
    ours = gradients(model)
    detach(model)
    own = model(**batch).loss  # PEFT's, with labels for the tokens that it puts before
    own.backward()
    theirs = gradients(model)
    assert value.item() == pytest.approx(own.item(), rel=2e-6)  # fp32
    assert ours
    assert furthest(ours, theirs) < 2e-6
    with_adapter = value.item()
    base = LlamaForCausalLM.forward(build().eval(), **batch).loss.item()
    assert abs(with_adapter - base) > 1e-4 or name == "lora and a copy of the head"


def test_its_own_forward_otherwise_and_again_after_detach() -> None:
    model = build().eval()
    plain = model(**BATCH)
    HiddenStateLoss(model, threshold=0.5)
    HiddenStateLoss(model, gamma=2.0)  # a second time changes nothing
    with_ours = model(**BATCH)
    assert torch.equal(plain.logits, with_ours.logits)
    assert torch.equal(plain.loss, with_ours.loss)
    assert torch.equal(
        model.generate(BATCH["input_ids"][:, :4], max_new_tokens=3, do_sample=False),
        build().eval().generate(BATCH["input_ids"][:, :4], max_new_tokens=3, do_sample=False),
    )
    detach(model)
    assert set(vars(model)) == set(vars(build()))
    assert "forward" not in vars(model.lm_head)


def test_trying_the_model_draws_no_random_numbers_and_leaves_its_modes() -> None:
    model = build("gpt2", resid_pdrop=0.1, embd_pdrop=0.1).train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    HiddenStateLoss(model, threshold=0.5)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes


def test_copies_and_saved_models() -> None:
    model = build().eval()
    compute = HiddenStateLoss(model, Focal())
    value = compute(model, BATCH)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()  # all classes alike, in the copy alone
    uniform = (1 - 1 / VOCABULARY) ** 2 * math.log(VOCABULARY)
    assert compute(twin, BATCH).item() == pytest.approx(uniform, rel=1e-6)
    assert compute(model, BATCH).item() == value.item()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert compute(again, BATCH).item() == value.item()


def test_a_forward_that_others_replaced() -> None:
    """Kernel libraries do: theirs runs under ours."""
    model = build().eval()
    compute = HiddenStateLoss(model, Focal())
    before = compute(model, BATCH).item()
    calls = []

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return LlamaForCausalLM.forward(model, *args, **kwargs)

    model.forward = other
    assert compute(model, BATCH).item() == before
    assert len(calls) == 3  # tried on two tokens, without and with labels, then used
    assert "labels" not in calls[2]


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = build().eval()
    compute = HiddenStateLoss(model, Focal())
    with pytest.raises(InputError, match=r"hidden states are \(3, 10, 16\) and labels \(3, 9\)"):
        compute(model, {**BATCH, "labels": BATCH["labels"][:, 1:]})
    assert "forward" not in vars(model.lm_head)
    assert model(**BATCH).logits.shape == (3, 10, VOCABULARY)


class Odd(LlamaForCausalLM):
    """Does something to its logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = self.odd(outputs.logits)
        return outputs


def odd(what: Any) -> Odd:
    model = Odd(build().config)
    model.odd = what
    return model


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x + 1e-3,
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: torch.where(torch.arange(VOCABULARY) < 30, x, -1e9),
        lambda x: x.relu(),
        lambda x: x.clamp(-30, 30),
        lambda x: 30 * torch.tanh(x / 30 + 0.01),
        lambda x: x[..., :-1],
        lambda x: x[:, -1:],
    ],
)
def test_models_that_do_more_to_their_logits_are_refused(what: Any) -> None:
    """Though none of it may show with logits as small as a new model's."""
    with pytest.raises(InputError, match="more to the logits"):
        HiddenStateLoss(odd(what), threshold=0.9)


def test_scales_and_caps_of_any_name_are_found() -> None:
    """Where the output layer has a bias, which is scaled and capped with the rest."""
    model = odd(lambda x: 7 * torch.tanh(x * 0.3))
    model.load_state_dict(build().state_dict())
    model.lm_head.bias = nn.Parameter(torch.linspace(-3, 3, VOCABULARY))
    expected = of_logits(model.eval(), BATCH, Focal())
    expected.backward()
    by_logits = gradients(model)
    value = HiddenStateLoss(model, Focal())(model, BATCH)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)  # fp32
    assert furthest(gradients(model), by_logits) < 2e-6


class Doubled(nn.Linear):
    """Computes something else than its weight says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "ModernBert", "Electra"])
def test_masked_language_models_are_refused(kind: str) -> None:
    """Their labels stand beside the tokens that they are of."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "embedding_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    with pytest.raises(InputError, match="does not predict next tokens"):
        HiddenStateLoss(model, threshold=0.9)


def test_what_others_add_to_the_loss_keeps_its_size() -> None:
    """AdaLoRA's regularizer, in PEFT's forward around ours; divided by a larger batch's labels."""
    found = []
    for weight in (None, Keep()):
        torch.manual_seed(0)
        config = peft.AdaLoraConfig(
            target_modules=["q_proj"], init_r=4, total_step=9, orth_reg_weight=3.0,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        model = peft.get_peft_model(build(), config).eval()
        if weight is None:
            value = model(**BATCH, num_items_in_batch=50).loss
        else:
            value = HiddenStateLoss(model, weight)(model, BATCH, 50)
        plain = of_logits(model.get_base_model(), BATCH, Keep())
        valid = int((BATCH["labels"][:, 1:] != -100).sum())
        regularizer = value.item() - plain.item() * valid / 50
        assert regularizer > 0.1
        found.append(regularizer)
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # a difference of fp32 numbers


def test_a_first_batch_of_one_token(monkeypatch: Any) -> None:
    """A model in shards is tried in its first forward, on two tokens, whatever the batch has."""
    from fortifai.integrations import hidden_states

    monkeypatch.setattr(hidden_states, "_is_here", lambda _: False)
    model = build("granite").eval()
    compute = HiddenStateLoss(model, Keep())
    one = torch.tensor([[5]])
    assert compute(model, {"input_ids": one, "labels": one}).item() == 0
    expected = of_logits(model, BATCH, Keep()).item()
    assert compute(model, BATCH).item() == pytest.approx(expected, rel=2e-6)  # fp32


def test_a_scaled_model_in_bf16_is_as_exact_as_cross_entropy() -> None:
    """The scale is of the logits, in fp32: hidden states times 1 / 0.3 would be rounded."""
    model = build("granite").eval().bfloat16()
    hidden = model.model(input_ids=BATCH["input_ids"]).last_hidden_state
    with torch.no_grad():
        exact = hidden.double() @ model.lm_head.weight.double().T / model.config.logits_scaling
        labels = BATCH["labels"][:, 1:]
        expected = F.cross_entropy(exact[:, :-1].transpose(1, 2), labels).item()
        found = HiddenStateLoss(model, Keep())(model, BATCH).item()
    assert found == pytest.approx(expected, rel=2e-6)  # fp32; rounded to bf16 it is 1e-4 off


def test_models_that_cannot_be_served() -> None:
    def refuses(model: nn.Module, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            HiddenStateLoss(model, threshold=0.9)

    t5 = T5Config(vocab_size=VOCABULARY, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    refuses(AutoModelForSeq2SeqLM.from_config(t5), "encoder-decoder")
    refuses(build().model, "LlamaModel has no output layer")
    refuses(nn.Linear(2, 2), "Linear has no output layer")
    refuses(nn.DataParallel(build()), "DataParallel")
    head = peft.LoraConfig(target_modules=["lm_head"], **LORA)
    refuses(peft.get_peft_model(build(), head), "lora.*not a plain torch.nn.Linear.*target_modules")
    derived, doubled = build(), build()
    derived.lm_head.__class__ = Doubled
    refuses(derived, "Doubled, not a plain torch.nn.Linear")
    doubled.lm_head.forward = lambda x: 2 * F.linear(x, doubled.lm_head.weight)
    refuses(doubled, "with a forward of its own, not a plain torch.nn.Linear")
    split = build()
    split._tp_size = 2
    refuses(split, "tensor parallelism")
    router = build()
    router.config.output_router_logits = True
    refuses(router, "router loss")
    nested = build()
    text = SimpleNamespace(output_router_logits=True)
    nested.config.get_text_config = lambda *_, **__: text
    refuses(nested, "router loss")
    twice = odd(lambda x: x)
    twice.odd = lambda x: twice.lm_head(torch.zeros(1, 2, 16)) + x
    refuses(twice, "called its output layer 2 times")
    never = build()
    never.set_output_embeddings(nn.Linear(16, VOCABULARY))
    never.get_output_embeddings = lambda: nn.Linear(16, VOCABULARY)
    refuses(never, "called its output layer 0 times")
    broken = odd(lambda x: x.no_such_thing)
    refuses(broken, "cannot be tried on two tokens: .*no_such_thing")


def test_bad_settings_and_batches() -> None:
    model = build()
    with pytest.raises(InputError, match="0 of weight, threshold and gamma"):
        HiddenStateLoss(model)
    with pytest.raises(InputError, match="2 of weight, threshold and gamma"):
        HiddenStateLoss(model, Keep(), gamma=2.0)
    with pytest.raises(InputError, match=r"threshold is 1\.5"):
        HiddenStateLoss(model, threshold=1.5)
    with pytest.raises(InputError, match="did you mean 'kept'"):
        HiddenStateLoss(model, threshold=0.9, normalize="keept")  # type: ignore[arg-type]
    compute = HiddenStateLoss(model, threshold=0.9)
    with pytest.raises(InputError, match="no labels"):
        compute(model, {"input_ids": BATCH["input_ids"]})
    wrong = BATCH["labels"].clone()
    wrong[1, 4] = 99
    with pytest.raises(InputError, match=r"labels\[1, 4\] is 99; class indices lie in \[0, 37\)"):
        compute(model, {**BATCH, "labels": wrong})
    wrong = BATCH["labels"].clone()
    wrong[:, 0] = 99  # of no token that is predicted
    assert compute(model, {**BATCH, "labels": wrong}) == compute(model, BATCH)
    with pytest.raises(InputError, match="labels is of type list"):
        compute(model, {**BATCH, "labels": wrong.tolist()})
    with pytest.raises(InputError, match="batch is of type Tensor; it must be a mapping"):
        compute(model, BATCH["input_ids"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="asks for output_router_logits"):
        compute(model, {**BATCH, "output_router_logits": True})
    with pytest.raises(InputError, match="model is of type str; give the model itself"):
        HiddenStateLoss("gpt2", threshold=0.9)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weight is the class Truncate"):
        HiddenStateLoss(model, Truncate)
    assert causal_model(model) is model


def test_without_real_parameters_it_is_tried_in_the_first_batch() -> None:
    """As where the weights are still on no device when the trainer is made."""
    real = build("gemma2").eval()
    with torch.device("meta"):
        model = type(real)(real.config).eval()
    compute = HiddenStateLoss(model, Focal())
    model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict())
    for name, buffer in real.named_buffers():
        model.get_buffer(name).copy_(buffer)
    expected = of_logits(real, BATCH, Focal()).item()
    assert compute(model, BATCH).item() == pytest.approx(expected, rel=2e-6)  # fp32
