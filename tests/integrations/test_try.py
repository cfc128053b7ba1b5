"""What a model is tried on when a loss on hidden states is made: two tokens of its own kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fortifai import weighted_cross_entropy
from fortifai.integrations.counting import KeptShare
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.transformers import ConfidenceTrainer
from fortifai.losses.weighing import LossStats
from fortifai.weights import Focal, Keep

from .tiny import USUAL, VOCABULARY, batch_of, build, ragged, trainer


def tried(model: nn.Module) -> list[list[int]]:
    """All that the model reads while the loss is made, row by row."""
    rows: list[list[int]] = []
    table: Any = model.get_input_embeddings()  # type: ignore[operator]  # of transformers

    def read(_: Any, args: Any) -> None:
        assert args[0].dim() == 2
        rows.extend(args[0].tolist())

    hook = table.register_forward_pre_hook(read)
    HiddenStateLoss(model, threshold=0.9)
    hook.remove()
    assert rows
    return rows


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "opt"])
def test_it_begins_as_texts_do(name: str) -> None:
    for row in tried(build(name, bos_token_id=4)):
        assert row[0] == 4
        assert row[1] not in (0, 2, 4)  # nor is the other one special
        assert len(row) == 2


@pytest.mark.parametrize(
    ("bos", "first"), [(9, 9), ([7, 8], 7), *((b, 11) for b in (None, VOCABULARY, -1, []))]
)
def test_where_the_beginning_is_named(bos: Any, first: int) -> None:
    """In the generation's configuration alone; else, or where it cannot be read, as ever."""
    model = build(bos_token_id=None)
    model.generation_config.bos_token_id = bos
    assert {row[0] for row in tried(model)} == {first}
    other = build(bos_token_id=5)
    other.generation_config.bos_token_id = bos
    assert {row[0] for row in tried(other)} == {5}


def test_without_a_generation_config() -> None:
    model = build(bos_token_id=None)
    model.generation_config = None
    assert all(0 < row[0] < VOCABULARY for row in tried(model))


class Padded(nn.Module):
    """Rows of the head beyond the vocabulary, and of the embeddings not as many."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 64)
        self.config = SimpleNamespace(vocab_size=10, bos_token_id=3)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, labels: Any = None, **_: Any) -> Any:
        logits = self.head(self.table(input_ids))
        if labels is not None:
            logits.view(-1, 10)  # as transformers' loss, which goes by the configuration
            raise AssertionError("it has no loss of its own")
        return {"logits": logits}


def test_padded_vocabularies() -> None:
    model = Padded()
    rows = tried(model)
    assert all(row[0] == 3 and max(row) < 10 for row in rows)
    batch = {"input_ids": torch.tensor([[3, 1, 9]]), "labels": torch.tensor([[3, 1, 9]])}
    logits = model(batch["input_ids"])["logits"][:, :-1]
    expected = weighted_cross_entropy(logits.mT, batch["labels"][:, 1:], weight=Keep())
    found = HiddenStateLoss(model, Keep())(model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)  # fp32
    resized = build("smollm")
    resized.resize_token_embeddings(64, mean_resizing=False)
    assert {row[0] for row in tried(resized)} == {1}


def gemma3_with_images() -> Any:
    """A configuration with parts; the image's token stands in the midst of the vocabulary."""
    text = {**USUAL, "vocab_size": 64, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 1}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=int(0.5 * 64),
            boi_token_index=int(0.6 * 64),
            eoi_token_index=int(0.8 * 64),
        )
    )


def test_multimodal_models_are_tried_without_an_image() -> None:
    rows = tried(gemma3_with_images())
    assert all(row[0] == 2 and not {32, 38, 51} & set(row) for row in rows)


@pytest.mark.parametrize("image", [False, True])
def test_multimodal_models_train_as_on_their_logits(image: bool) -> None:
    model = gemma3_with_images()
    ids = torch.randint(3, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    extra = {"token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
    labels = ids.clone()
    if image:
        ids[:, 2], ids[:, 3:7], ids[:, 7] = 38, 32, 51
        extra["token_type_ids"] = (ids == 32).long()
        extra["pixel_values"] = torch.randn(2, 3, 8, 8)
        labels[:, 2:8] = -100
    model.train()
    results = []
    for on_hidden_states in (True, False):
        if on_hidden_states:
            compute = HiddenStateLoss(model, Focal(1.0))
            value = compute(model, {"input_ids": ids, "labels": labels, **extra})
        else:
            logits = model(input_ids=ids, **extra).logits[:, :-1]
            value = weighted_cross_entropy(logits.mT, labels[:, 1:], weight=Focal(1.0))
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((value.item(), grads))
        model.zero_grad()
    assert results[0][0] == pytest.approx(results[1][0], rel=2e-6)  # fp32
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=2e-6)


def test_a_multimodal_model_in_the_trainer(tmp_path: Any) -> None:
    data = [
        {"input_ids": ids, "labels": ids.clone(), "token_type_ids": torch.zeros_like(ids)}
        for ids in torch.randint(3, 30, (4, 12), generator=torch.Generator().manual_seed(0))
    ]
    more = {"threshold": 0.9, "eval_dataset": data}
    run = trainer(ConfidenceTrainer, tmp_path, gemma3_with_images(), data, more=more)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before


def _is_float64(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


class _NoFloat64(TorchDispatchMode):
    """A device that has no float64, as Apple's: every operation that would give it is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(map(_is_float64, tree_leaves(result))):
            raise TypeError(f"{func} gave float64, which this device has not")
        return result


class _NoFloat64Asked(TorchFunctionMode):
    """The same of what is asked for, before anything is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.float64 in (*args, *(kwargs or {}).values()):
            raise TypeError(f"{func} was asked for float64, which this device has not")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_NoFloat64, _NoFloat64Asked])
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_no_float64_on_the_way(mode: Any, name: str) -> None:
    """Tried, trained, counted and evaluated; for the stand-in a whole process has no float64."""
    model, batch = build(name), batch_of(ragged(3))
    with pytest.raises(TypeError), mode():
        torch.zeros(1, dtype=torch.float64)
    with mode():
        for weight in (Keep(), Focal(2.0)):
            compute = HiddenStateLoss(model, weight)
            compute(model, batch).backward()
            compute(model, batch).backward()
            compute.by_row(model, batch)
            assert 0 < compute.pop_kept_share() <= 1


def test_kept_shares_of_more_tokens_than_float32_counts() -> None:
    """A plain sum would stay at 2^25; without float64."""
    share = KeptShare()
    share.add(LossStats(torch.tensor(2.0**25), torch.tensor(2**26), torch.tensor(2.0**26)))
    for _ in range(1000):
        share.add(LossStats(torch.tensor(1.0), torch.tensor(2), torch.tensor(2.0)))
    sums = share.pop()
    assert sums is not None
    assert sums.dtype == torch.float32
    assert sums[0].item() == pytest.approx(2**25 + 1000, abs=4)  # of float32 there
    assert share.pop() is None
