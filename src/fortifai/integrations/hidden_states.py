"""The losses on hidden states, inside any causal language model of transformers.

The model's own forward runs as it is, up to its output layer. That is called with the hidden
states, as ever, and gives the loss in place of the logits: attention masks, adapters, autocast,
checkpointing and the hooks of DDP and FSDP2 see an ordinary forward, whose output holds the loss.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from fortifai.confidence import AnyWeight
from fortifai.errors import InputError
from fortifai.integrations.counting import Counted, chosen_weight
from fortifai.losses.checks import Normalize, Reduction
from fortifai.losses.linear import linear_weighted_cross_entropy
from fortifai.losses.weighing import LossStats

IGNORED = -100
_ORIGINAL = "_fortifai_forward"  # where a model keeps the forward that was its own
_SQUEEZE = "_fortifai_squeeze"
_MARK = "_fortifai_loss"


@dataclasses.dataclass
class WeightedOutput(ModelOutput):
    """What a model gives instead of logits.

    Attributes:
        loss: Scalar, float32 (float64 for such models).
        kept: Sum of weights, a detached scalar.
        valid: Number of labels that count, a detached scalar.
    """

    loss: Tensor | None = None
    kept: Tensor | None = None
    valid: Tensor | None = None


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


@dataclasses.dataclass(frozen=True)
class _Ask:
    weight: AnyWeight
    reduction: Reduction
    normalize: Normalize


class HiddenStateLoss(Counted):
    """Confidence-weighted loss of a causal language model, without its logits; for any loop.

        compute = HiddenStateLoss(model, threshold=0.9)
        compute(model, batch).backward()

    Call it with the model as it is wrapped then (DDP, FSDP2, compiled, PEFT). The model must have
    an output layer that is an `nn.Linear`, found by ``get_output_embeddings()``, called once; what
    the model does to the logits after it may be a scale and a soft-cap. That is found by running
    it on two tokens, with known numbers in place of the logits. From then on the model has a
    forward that gives the loss when it is asked for, and is the model's own otherwise; `detach`
    gives that back.

    What a model adds to its loss by itself (the router loss of mixtures of experts) would be
    missing, so such a model is refused.

    Args:
        model: Of transformers, or of PEFT around one.
        weight: Maps log p_t to [0, 1]; see `fortifai.confidence`.
        threshold: Short for ``Truncate(threshold)``.
        gamma: Short for ``Focal(gamma)``.
        normalize: ``valid``: per valid label, as ForTIFAI's code does; ``kept``: each micro-batch
            is divided by its own sum of weights and counts in proportion to its valid labels.

    Raises:
        InputError: Not exactly one of weight, threshold and gamma is given, or it is out of range;
            or the model cannot be served: the sentence says why.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: AnyWeight | None = None,
        *,
        threshold: float | None = None,
        gamma: float | None = None,
        normalize: Normalize = "valid",
    ) -> None:
        super().__init__(chosen_weight(weight, threshold, gamma), normalize)
        self._ask = _Ask(self.weight, self.reduction, normalize)
        attach(causal_model(model))

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of a micro-batch, a scalar.

        Args:
            model: The one of the constructor, or what wraps it now.
            inputs: What the model is called with: ``input_ids`` and the rest, and ``labels``
                (batch, length) int64, the tokens themselves, -100 where none counts; or
                ``shift_labels``, that stand one to the left already.
            num_items_in_batch: Valid labels of the whole batch, micro-batches and processes
                together; where gradients are averaged over processes, as DDP and FSDP2 do, over
                the number of processes. None: those of this micro-batch.

        Raises:
            InputError: No labels, or labels that do not stand beside the hidden states.
        """
        attach(causal_model(model))  # what others did to the forward since goes under ours
        if inputs.get("labels") is None and inputs.get("shift_labels") is None:
            raise InputError(
                "the batch has no labels; have the data collator add them, such as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        outputs = model(**inputs, confidence=self._ask)
        loss, stats = outputs["loss"], LossStats(outputs["kept"], outputs["valid"])
        return self.divided(loss, stats, num_items_in_batch)


def causal_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside DDP, `torch.compile` and PEFT.

    Raises:
        InputError: It is wrapped in DataParallel.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise InputError(
                "the model is wrapped in DataParallel, whose copies would all run the forward of "
                "the first; use DistributedDataParallel, by torchrun or accelerate launch"
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._orig_mod)
        elif hasattr(model, "get_base_model"):
            model = cast(Any, model).get_base_model()
        else:
            return model


def attach(model: nn.Module) -> None:
    """Let the model give the loss when it is asked for; does nothing where it does so already.

    Raises:
        InputError: The model cannot be served.
    """
    if _attached(model):
        return
    output_layer(model)
    if all(map(_is_here, model.parameters())):
        _measure_on_two_tokens(model)
    setattr(model, _ORIGINAL, model.forward)

    # Trainer and generate read the signature of a model's forward
    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, confidence: _Ask | None = None, **kwargs: Any) -> Any:
        original = getattr(self, _ORIGINAL)
        if confidence is None:
            return original(*args, **kwargs)
        return _forward(self, original, confidence, args, kwargs)

    setattr(forward, _MARK, True)
    cast(Any, model).forward = types.MethodType(forward, model)


def detach(model: nn.Module) -> None:
    """Give a model its own forward back, and with it what others put around ours."""
    model = causal_model(model)
    original = model.__dict__.get(_ORIGINAL)
    if _attached(model):
        if getattr(original, "__func__", None) is type(model).forward:
            model.__dict__.pop("forward", None)
        else:
            cast(Any, model).forward = original
    for name in (_ORIGINAL, _SQUEEZE):
        model.__dict__.pop(name, None)


def _attached(model: nn.Module) -> bool:
    """Whether ours is the forward, or lies under what accelerate put around it."""
    if _ORIGINAL not in model.__dict__:
        return False
    forward: Any = model.forward
    while forward is not None:
        if _MARK in getattr(forward, "__dict__", {}) or _MARK in getattr(
            getattr(forward, "__func__", None), "__dict__", {}
        ):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def _is_here(parameter: Tensor) -> bool:
    """Whether it is there as a whole; else the model is tried in the forward of the first batch."""
    sharded = hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")  # FSDP2; DeepSpeed
    return not (parameter.is_meta or sharded)


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
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise InputError(
            f"the output layer of {name} is {type(head).__module__}.{type(head).__name__}, not a "
            "torch.nn.Linear, so its weight alone does not give the logits; take adapters and "
            "quantization off it (with LoRA leave it out of target_modules), or use "
            "fortifai.integrations.transformers.loss on logits"
        )
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise InputError(
            f"{name} is split by tensor parallelism, and so is its output layer; train with data "
            "parallelism (DDP, FSDP2), or use fortifai.integrations.transformers.loss on logits"
        )
    return head


class _Head:
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

    def __enter__(self) -> _Head:
        self.before = self.head.__dict__.get("forward")
        cast(Any, self.head).forward = self._forward
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del self.head.forward
        else:
            cast(Any, self.head).forward = self.before


def _forward(
    model: nn.Module,
    original: Callable[..., Any],
    ask: _Ask,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> WeightedOutput:
    labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
    if _SQUEEZE not in model.__dict__:
        _measure(model, original, args, kwargs)
    squeeze: Squeeze = getattr(model, _SQUEEZE)
    # labels move instead of hidden states: a slice of those would copy them
    target = shifted if shifted is not None else F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    results: list[tuple[Tensor, LossStats]] = []

    def instead(head: nn.Linear, hidden: Tensor) -> Tensor:
        if hidden.shape[:-1] != target.shape:
            raise InputError(
                f"hidden states are {tuple(hidden.shape)} and labels {tuple(target.shape)}; there "
                "must be one label, not shifted, for each position"
            )
        hidden = hidden.to(head.weight.device)
        bias: Tensor | None = head.bias
        if squeeze.scale != 1:
            hidden = hidden * squeeze.scale
            bias = None if bias is None else bias * squeeze.scale
        loss, stats = linear_weighted_cross_entropy(
            hidden,
            head.weight,
            target.to(hidden.device),
            linear_bias=bias,
            weight=ask.weight,
            ignore_index=IGNORED,
            reduction=ask.reduction,
            normalize=ask.normalize,
            logit_softcap=squeeze.cap,
            return_stats=True,
        )
        # The layer's output must be what the backward comes from: FSDP2 hangs its hooks on it.
        # Three dimensions, for what the model does to logits
        loss = loss.reshape(1, 1, 1)
        results.append((loss, stats))
        return loss

    with _Head(output_layer(model), instead):
        original(*args, **kwargs)
    if len(results) != 1:
        raise InputError(
            f"{type(model).__name__} called its output layer {len(results)} times in one forward; "
            "the loss needs exactly one call, with the hidden states of all positions"
        )
    loss, stats = results[0]
    return WeightedOutput(loss=loss.reshape(()), kept=stats.kept, valid=stats.valid)


def _measure_on_two_tokens(model: nn.Module) -> None:
    ids = torch.zeros((1, 2), dtype=torch.int64, device=output_layer(model).weight.device)
    try:
        _measure(model, model.forward, (), {"input_ids": ids})
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be tried on two tokens: {error}; give a causal "
            "language model that runs on input_ids alone"
        ) from error


def _measure(
    model: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Find out what the model does to its logits, and keep it in the model.

    Known numbers stand in for the logits, and the model's forward says what becomes of them: tiny
    ones show the scale, a huge one the cap, and those in between whether that is all.

    Raises:
        InputError: The output layer is not called once, or something else is done.
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

    training = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw random numbers, and shift those of the training
    try:
        with torch.no_grad(), _Head(output_layer(model), instead) as head:
            outputs = forward(*args, **kwargs)
    finally:
        for module, was in training.items():
            module.training = was
    given = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    if head.calls != 1:
        raise InputError(
            f"{name} called its output layer {head.calls} times in one forward; the loss needs "
            "exactly one call, with the hidden states of all positions"
        )
    (probe,) = probes
    assert isinstance(given, Tensor)
    found = None
    if given.shape == probe.shape and probe.shape[-2] >= 2:
        given = given.to(probe)
        tiny, out = probe[..., 0, :], given[..., 0, :]
        scale = (tiny * out).sum().item() / tiny.square().sum().item()
        largest = given[..., -1, -1].abs().max().item()
        found = Squeeze(
            scale=1.0 if abs(scale - 1) < 1e-6 else scale,
            cap=largest if largest < 5e5 * abs(scale) else None,
        )
    # 1e-6: a model may compute in float32
    if found is None or not torch.allclose(given, found(probe), rtol=1e-6, atol=1e-12):
        raise InputError(
            f"{name} does more to the logits of its output layer than to scale them and to cap "
            "them by tanh, so the loss on hidden states would not be that of its logits; use "
            "fortifai.integrations.transformers.loss on logits"
        )
    setattr(model, _SQUEEZE, found)
