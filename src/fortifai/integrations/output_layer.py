"""A model's output layer: which it is, what the model does to its logits, and a patch of it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai.errors import InputError


@dataclasses.dataclass(frozen=True)
class LogitTransform:
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


@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """What turns hidden states into logits.

    Attributes:
        module: What the model calls.
        linear: Whose weight and bias it has: the module itself, or what PEFT put it around.
        tokens: PEFT's layer of `trainable_token_indices`, which has rows of its own for some
            tokens; None without.
    """

    module: nn.Module
    linear: nn.Linear
    tokens: Any

    @property
    def classes(self) -> int:
        """Rows of the weight; `out_features` is the width in the copies of PEFT's tied layers."""
        return self.linear.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.linear.weight.device

    def weight(self) -> Tensor:
        """(classes, width), as it is used: with its gradient to the rows that PEFT trains."""
        layer = self.tokens
        if layer is None:
            return self.linear.weight
        if layer.disable_adapters or not layer.active_adapters:
            if layer.merged:  # as its own forward does
                layer.unmerge()
            return self.linear.weight
        if layer.merged:
            return self.linear.weight
        merged: Tensor = layer.get_merged_weights(layer.active_adapters)
        return merged


def output_layer(model: nn.Module) -> OutputLayer:
    """The layer that turns hidden states into logits.

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
    if getattr(_text_config(model), "output_router_logits", False) is True:
        raise InputError(
            f"{name} adds a router loss to its own, which this loss would leave out; set "
            "config.output_router_logits = False (in TRL router_aux_loss_coef=0.0) to train "
            "without it"
        )
    layer = _seen_through(head, name)
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise InputError(
            f"{name} is split by tensor parallelism, and so is its output layer; train with data "
            "parallelism (DDP, FSDP2), or use fortifai.integrations.transformers.loss on logits"
        )
    return layer


def _text_config(model: nn.Module) -> Any:
    """The configuration of the language model, which multimodal ones keep as a part of theirs."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _seen_through(head: Any, name: str) -> OutputLayer:
    """The output layer behind what PEFT put around it."""
    if hasattr(head, "modules_to_save"):  # copies that are trained in its place
        active = head.active_adapters
        original = head.disable_adapters or not active
        if original or any(adapter not in head.modules_to_save for adapter in active):
            head = head.original_module
        else:
            head = head.modules_to_save[active[0]]
    tokens = getattr(head, "token_adapter", None)
    if tokens is None and hasattr(head, "trainable_tokens_delta"):
        tokens = head
    linear = head if tokens is None else tokens.base_layer
    # A subclass may compute something else: quantized, adapted by LoRA
    own = any(
        "forward" in module.__dict__ and not hasattr(module, "_hf_hook")  # which accelerate calls
        for module in {head, linear}
    )
    if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward or own:
        raise InputError(
            f"the output layer of {name} is {type(linear).__module__}.{type(linear).__name__}"
            f"{' with a forward of its own' if own else ''}, not a plain torch.nn.Linear, so its "
            "weight alone does not give the logits; take adapters and quantization off it (with "
            "LoRA leave it out of target_modules), or use "
            "fortifai.integrations.transformers.loss on logits"
        )
    if tokens is not None and linear.bias is not None:
        raise InputError(
            f"the output layer of {name} has a bias, which PEFT leaves out for "
            "trainable_token_indices; leave trainable_token_indices out of the adapter's "
            'configuration, or train a copy of the whole layer by modules_to_save=["lm_head"]'
        )
    return OutputLayer(head, linear, tokens)


class PatchedHead:
    """Stands in for an output layer's forward while a model's forward runs."""

    def __init__(
        self, layer: OutputLayer, instead: Callable[[OutputLayer, Tensor], Tensor]
    ) -> None:
        self.layer, self.instead = layer, instead
        self.calls = 0

    # How many rows are kept decides shapes here: in a compiled model this part runs uncompiled.
    # PyTorch has no types for `disable`
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return self.instead(self.layer, hidden)

    def __enter__(self) -> PatchedHead:
        self.before = self.layer.module.__dict__.get("forward")
        cast(Any, self.layer.module).forward = self._forward
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del self.layer.module.forward
        else:
            cast(Any, self.layer.module).forward = self.before


def measured(model: nn.Module, forward: Callable[..., Any]) -> LogitTransform:
    """What the model does to its logits, found by running its forward on two tokens.

    Raises:
        InputError: The model cannot be tried, the output layer is not called once, something else
            is done to the logits, or the model's own loss is not that of the next tokens.
    """
    layer = output_layer(model)
    ids, labels = torch.tensor(_tokens(model, layer.classes), device=layer.device).view(2, 1, 2)
    training = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw random numbers, and shift those of the training
    try:
        with torch.no_grad():
            transform = _transform_of(model, forward, ids)
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
    return transform


def _tokens(model: nn.Module, classes: int) -> list[int]:
    """Two tokens, the first that of the beginning of a text if the model has one; and two labels.

    The others are from the midst of the vocabulary, and none of those that the configuration names
    (an image's, which a multimodal model would want the image of).
    """
    text: Any = _text_config(model)
    config: Any = getattr(model, "config", None)
    embeddings = cast(Any, model).get_input_embeddings()
    rows = (getattr(text, "vocab_size", None), getattr(embeddings, "num_embeddings", None))
    size = min(classes, *(n for n in rows if isinstance(n, int) and n > 0))
    named = set(_named_tokens(config.to_dict() if hasattr(config, "to_dict") else {}))
    midst: list[int] = []
    for part in (0.3, 0.5, 0.6, 0.8):
        start = int(size * part)
        others = (token % size for token in range(start, start + size))
        free = (token for token in others if token not in named and token not in midst)
        midst.append(next(free, start))
    for place in (text, config, getattr(model, "generation_config", None)):
        first = getattr(place, "bos_token_id", None)
        first = first[0] if isinstance(first, Sequence) and first else first
        if isinstance(first, int) and 0 <= first < size:
            return [first, *midst[1:]]
    return midst


def _named_tokens(config: Mapping[str, Any]) -> Iterator[int]:
    """The token ids that a configuration and its parts name."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _named_tokens(value)
        elif re.search(r"_token_(id|index)s?$", str(key)):  # id2label has numbers
            ids = value if isinstance(value, Sequence) else [value]
            yield from (token for token in ids if isinstance(token, int))


def _transform_of(model: nn.Module, forward: Callable[..., Any], ids: Tensor) -> LogitTransform:
    """What the model does to its logits.

    Known numbers stand in for the logits, and the model's forward says what becomes of them: tiny
    ones show the scale, a huge one the cap, and those in between whether that is all.
    """
    name = type(model).__name__
    probes: list[Tensor] = []

    def instead(layer: OutputLayer, hidden: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], layer.classes)
        # float32, so that the model's arithmetic on them shows digits that half precision has not;
        # not float64, which not every device has
        row = torch.linspace(-1000, 1000, shape[-1], dtype=torch.float32, device=hidden.device)
        probe = row.expand(shape).clone()
        probe[..., 0, :] *= 1e-6
        probe[..., -1, -1] = 1e6
        probes.append(probe)
        return probe

    with PatchedHead(output_layer(model), instead) as patched:
        given = _logits(forward(input_ids=ids))
    if patched.calls != 1:
        raise InputError(
            f"{name} called its output layer {patched.calls} times in one forward; the loss needs "
            "exactly one call, with the hidden states of all positions"
        )
    (probe,) = probes
    if given is not None and given.shape == probe.shape:
        given = given.to(probe)
        tiny, out = probe[..., 0, :], given[..., 0, :]
        scale = (tiny * out).sum().item() / tiny.square().sum().item()
        largest = given[..., -1, -1].abs().max().item()
        found = LogitTransform(
            scale=1.0 if abs(scale - 1) < 1e-6 else scale,
            cap=largest if largest < 5e5 * abs(scale) else None,
        )
        # 2e-6: some roundings of float32
        if torch.allclose(given, found(probe), rtol=2e-6, atol=1e-12):
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
    # where the vocabulary is padded beyond its configuration, the model itself has no loss
    if getattr(_text_config(model), "vocab_size", None) not in (None, output_layer(model).classes):
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
