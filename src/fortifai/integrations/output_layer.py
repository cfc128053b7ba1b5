"""A model's output layer: which it is, what the model does to its logits, and a stand-in for it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai.errors import InputError


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """What a model does to the logits of its output layer: cap * tanh(scale * x / cap).

    Attributes:
        scale: As Granite and Cohere have; 1 for most.
        cap: As Gemma 2 has; None for no cap, scale * x.
    """

    scale: float
    cap: float | None

    def __call__(self, x: Tensor) -> Tensor:
        """The model's logits from those of its output layer, any shape."""
        x = self.scale * x
        return x if self.cap is None else self.cap * torch.tanh(x / self.cap)


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that turns hidden states into logits, of (classes, width).

    Raises:
        InputError: There is none, it is no plain linear layer, or the model's loss is more than
            that of its logits and labels.
    """
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None:
        raise InputError(
            f"{name} has no output layer, as get_output_embeddings() says; give a causal language "
            "model of transformers, or use a loss of fortifai.losses on your own logits"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder, whose labels stand in place already; this loss shifts "
            "them and is for causal language models: use fortifai.losses there"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "output_router_logits", False) is True:
        raise InputError(
            f"{name} adds a router loss to its own, which this loss would leave out; set "
            "config.output_router_logits = False (in TRL router_aux_loss_coef=0.0) to train "
            "without it"
        )
    if hasattr(head, "modules_to_save"):  # PEFT trains a copy of the layer
        active = cast(Any, head).active_adapters
        if len(active) == 1 and active[0] in head.modules_to_save:
            head = head.modules_to_save[active[0]]
    # A subclass may compute something else: quantized, adapted by LoRA
    own = "forward" in head.__dict__ and not hasattr(head, "_hf_hook")  # which accelerate calls
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or own:
        raise InputError(
            f"the output layer of {name} is {type(head).__module__}.{type(head).__name__}"
            f"{' with a forward of its own' if own else ''}, not a plain torch.nn.Linear, so its "
            "weight alone does not give the logits; take adapters and quantization off it (with "
            "LoRA leave it out of target_modules), or use "
            "fortifai.integrations.transformers.loss on logits"
        )
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise InputError(
            f"{name} is split by tensor parallelism, and so is its output layer; train with data "
            "parallelism (DDP, FSDP2), or use fortifai.integrations.transformers.loss on logits"
        )
    return head


class StandIn:
    """Stands in for an output layer's forward while a model's forward runs."""

    def __init__(self, head: nn.Linear, instead: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        self.head, self.instead = head, instead
        self.calls = 0

    # How many rows are kept decides shapes here: in a compiled model this part runs uncompiled.
    # PyTorch has no types for `disable`
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return self.instead(self.head, hidden)

    def __enter__(self) -> StandIn:
        self.before = self.head.__dict__.get("forward")
        cast(Any, self.head).forward = self._forward
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del self.head.forward
        else:
            cast(Any, self.head).forward = self.before


def measured(model: nn.Module, forward: Callable[..., Any]) -> Squeeze:
    """What the model does to its logits, found by running its forward on two tokens.

    Raises:
        InputError: The model cannot be tried, the output layer is not called once, something else
            is done to the logits, or the model's own loss is not that of the next tokens.
    """
    head = output_layer(model)
    # two tokens and two labels from the midst of the vocabulary, where none is special
    midst = [int(head.out_features * part) for part in (0.3, 0.5, 0.6, 0.8)]
    ids, labels = torch.tensor(midst, device=head.weight.device).view(2, 1, 2)
    training = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw random numbers, and shift those of the training
    try:
        with torch.no_grad():
            squeeze = _squeeze_of(model, forward, ids)
            _check_own_loss(model, forward, ids, labels)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be tried on two tokens: {error}; give a causal "
            "language model that runs on input_ids alone"
        ) from error
    finally:
        for module, was in training.items():
            module.training = was
    return squeeze


def _squeeze_of(model: nn.Module, forward: Callable[..., Any], ids: Tensor) -> Squeeze:
    """What the model does to its logits.

    Known numbers stand in for the logits, and the model's forward says what becomes of them: tiny
    ones show the scale, a huge one the cap, and those in between whether that is all.
    """
    name = type(model).__name__
    probes: list[Tensor] = []

    def instead(head: nn.Linear, hidden: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], head.out_features)
        # double, so that the model's arithmetic on them shows digits that its dtype has not
        row = torch.linspace(-1000, 1000, shape[-1], dtype=torch.float64, device=hidden.device)
        probe = row.expand(shape).clone()
        probe[..., 0, :] *= 1e-6
        probe[..., -1, -1] = 1e6
        probes.append(probe)
        return probe

    with StandIn(output_layer(model), instead) as head:
        given = _logits(forward(input_ids=ids))
    if head.calls != 1:
        raise InputError(
            f"{name} called its output layer {head.calls} times in one forward; the loss needs "
            "exactly one call, with the hidden states of all positions"
        )
    (probe,) = probes
    if given is not None and given.shape == probe.shape:
        given = given.to(probe)
        tiny, out = probe[..., 0, :], given[..., 0, :]
        scale = (tiny * out).sum().item() / tiny.square().sum().item()
        largest = given[..., -1, -1].abs().max().item()
        found = Squeeze(
            scale=1.0 if abs(scale - 1) < 1e-6 else scale,
            cap=largest if largest < 5e5 * abs(scale) else None,
        )
        # 1e-6: a model may compute in float32
        if torch.allclose(given, found(probe), rtol=1e-6, atol=1e-12):
            return found
    raise InputError(
        f"{name} does more to the logits of its output layer than to scale them and to cap them by "
        "tanh, so the loss on hidden states would not be that of its logits; use "
        "fortifai.integrations.transformers.loss on logits"
    )


def _check_own_loss(
    model: nn.Module, forward: Callable[..., Any], ids: Tensor, labels: Tensor
) -> None:
    """Refuse a model whose own loss is not cross entropy of the tokens that come next.

    Masked language models compare logits and labels place by place, for one; a causal model that
    takes no labels, or gives no logits beside its loss, is left to its name.
    """
    if "labels" not in inspect.signature(type(model).forward).parameters:
        return
    outputs = forward(input_ids=ids, labels=labels)
    own = outputs.get("loss") if isinstance(outputs, Mapping) else None
    logits = _logits(outputs)
    if not isinstance(own, Tensor) or logits is None:
        return
    shifted = F.cross_entropy(logits[0, :1].float(), labels[0, 1:])
    # of models that take the softmax in half precision
    rounding = max(1e-5, 4 * torch.finfo(logits.dtype).eps)
    if not torch.allclose(own.float(), shifted, rtol=rounding, atol=rounding):
        raise InputError(
            f"{type(model).__name__} has a loss of its own of {own.item():.4g} on two tokens where "
            f"cross entropy of the second is {shifted.item():.4g}: it does not predict next tokens "
            "(as masked language models), or adds something; use fortifai.losses on its logits"
        )


def _logits(outputs: Any) -> Tensor | None:
    found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
    return found if isinstance(found, Tensor) else None
