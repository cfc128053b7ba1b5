from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fortifai import (
    FocalCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
    focal_cross_entropy,
    truncated_cross_entropy,
)
from fortifai.errors import InputError

OPTIONS = [
    {},
    {"ignore_index": 1, "reduction": "sum"},
    {"normalize": "kept", "logit_softcap": 2.0},
    {"reduction": "none"},
]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (12,), generator=generator)
    target[::4] = -100
    return torch.randn(12, 5, generator=generator) * 2, target


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_modules_are_their_functions(batch, options) -> None:
    logits, target = batch
    if "ignore_index" in options:
        target = target.clamp(min=0)
    pairs = [
        (TruncatedCrossEntropyLoss(0.4, **options), truncated_cross_entropy, {"threshold": 0.4}),
        (FocalCrossEntropyLoss(1.5, **options), focal_cross_entropy, {"gamma": 1.5}),
    ]
    for module, function, parameter in pairs:
        assert isinstance(module, nn.Module)
        assert module.kept_share is None
        loss = module(logits, target)
        expected, stats = function(logits, target, **parameter, **options, return_stats=True)
        assert torch.equal(loss, expected)
        assert torch.equal(module.kept_share, stats.kept_share)
        assert 0 < module.kept_share < 1


def test_kept_share_holds_no_graph(batch) -> None:
    module = FocalCrossEntropyLoss()
    module(batch[0].requires_grad_(), batch[1]).backward()
    assert not module.kept_share.requires_grad


def test_focal_module_can_detach(batch) -> None:
    logits, target = batch
    leaf = logits.clone().requires_grad_()
    FocalCrossEntropyLoss(detach_weight=True)(leaf, target).backward()
    other = logits.clone().requires_grad_()
    FocalCrossEntropyLoss()(other, target).backward()
    assert not torch.allclose(leaf.grad, other.grad)


def test_no_state_and_copies(batch) -> None:
    module = TruncatedCrossEntropyLoss(0.3)
    module(*batch)
    assert module.state_dict() == {}
    assert torch.equal(copy.deepcopy(module)(*batch), module(*batch))


def test_it_prints_its_settings() -> None:
    text = repr(nn.Sequential(TruncatedCrossEntropyLoss(0.25, normalize="kept")))
    for part in ("TruncatedCrossEntropyLoss", "0.25", "-100", "'mean'", "'kept'"):
        assert part in text
    assert "gamma=3.0, detach_weight=True" in repr(FocalCrossEntropyLoss(3.0, detach_weight=True))


def test_bad_settings_are_refused_when_it_is_made() -> None:
    with pytest.raises(InputError, match="threshold is 2"):
        TruncatedCrossEntropyLoss(2)
    with pytest.raises(InputError, match="gamma is -1"):
        FocalCrossEntropyLoss(-1)
    with pytest.raises(InputError, match="did you mean 'none'"):
        TruncatedCrossEntropyLoss(reduction="non")
    with pytest.raises(InputError, match="did you mean 'valid'"):
        FocalCrossEntropyLoss(normalize="vaild")
    with pytest.raises(InputError, match="logit_softcap is -1"):
        FocalCrossEntropyLoss(logit_softcap=-1.0)
