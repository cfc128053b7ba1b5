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
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from fortifai.errors import InputError
from fortifai.integrations.counting import Counted, check_labels
from fortifai.integrations.data_weights import COLUMN, beside_labels
from fortifai.integrations.output_layer import (
    LogitTransform,
    OutputLayer,
    PatchedHead,
    measured,
    output_layer,
)
from fortifai.losses.linear import linear_loss
from fortifai.losses.options import LinearOptions
from fortifai.losses.weighing import LossStats
from fortifai.weights import AnyWeight

IGNORED = -100
_ORIGINAL = "_fortifai_forward"  # where a model keeps the forward that was its own
_TRANSFORM = "_fortifai_logit_transform"
_KNOWN_TO_ALL = "_fortifai_known_to_all"  # that all processes have the transform
_MARK = "_fortifai_loss"


@dataclasses.dataclass
class WeightedOutput(ModelOutput):
    """What a model gives instead of logits.

    Attributes:
        loss: Scalar, float32 (float64 for such models), divided as the caller wants it: what others
            add to it (the regularizer of AdaLoRA) keeps its size. By row: sums, (batch,).
        kept: Sum of weights, a detached scalar.
        valid: Number of labels that count, a detached scalar; by row (batch,).
        weight_sum: Sum of the data's weights, a detached scalar.
        log_probs: For TRL, whose loss is minus their sum: minus the loss, (1,).
        label_mask: For TRL, which adds up its own for each token: labels that count, (1,).
        entropy: Likewise: of the predictions, in nats, (1,).
        is_top1: Likewise: labels that are the likeliest token, (1,).
    """

    loss: Tensor | None = None
    kept: Tensor | None = None
    valid: Tensor | None = None
    weight_sum: Tensor | None = None
    log_probs: Tensor | None = None
    label_mask: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a model's forward is asked for, as its argument `confidence`.

    Attributes:
        compute: The loss.
        items: What it is divided by; see `Counted.divided`.
        by_row: Whether sums of rows are wanted.
        observe: Whether to tell what is predicted, too.
    """

    compute: HiddenStateLoss
    items: Tensor | float | None
    by_row: bool = False
    observe: bool = False


class HiddenStateLoss(Counted):
    """Confidence-weighted loss of a causal language model, without its logits; for any loop.

        compute = HiddenStateLoss(model, threshold=0.9)
        compute(model, batch).backward()

    Call it with the model as it is wrapped then (DDP, FSDP2, compiled, PEFT). The model must have
    an output layer that is an `nn.Linear`, found by ``get_output_embeddings()``, called once; what
    the model does to the logits after it may be a scale and a soft-cap. That is found by running
    it on two tokens, of which the first is the model's beginning of a text, with known numbers in
    place of the logits. From then on the model has a
    forward that gives the loss when it is asked for, and is the model's own otherwise; `detach`
    gives that back.

    What a model adds to its loss by itself (the router loss of mixtures of experts) would be
    missing, so such a model is refused.

    Args:
        model: Of transformers, or of PEFT around one.
        weight: Maps log p_t to [0, 1]; see `fortifai.weights`.
        **options: Those of `Counted`: ``threshold`` or ``gamma`` in place of the weight,
            ``normalize``, ``label_smoothing`` and the other terms of a row's loss.

    Raises:
        InputError: As `Counted`; or the model cannot be served: the sentence says why.
    """

    def __init__(self, model: nn.Module, weight: AnyWeight | None = None, **options: Any) -> None:
        super().__init__(weight, **options)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model is of type {type(model).__name__}; give the model itself, such as "
                "AutoModelForCausalLM.from_pretrained(...) gives"
            )
        attach(causal_model(model))

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of a micro-batch, a scalar.

        Args:
            model: The one of the constructor, or what wraps it now.
            inputs: What the model is called with: ``input_ids`` and the rest, and ``labels``
                (batch, length) int64, the tokens themselves, -100 where none counts; or
                ``shift_labels``, that stand one to the left already. ``loss_weights``, if there,
                stand beside these, or are (batch,): the data's weights.
            num_items_in_batch: Valid labels of the whole batch (with ``weight_sum`` the sum of
                their weights), micro-batches and processes together; where gradients are averaged
                over processes, as DDP and FSDP2 do, over the number of processes. None: those of
                this micro-batch.

        Raises:
            InputError: No labels, or labels that do not stand beside the hidden states, or
                weights of the data that are wrong.
        """
        outputs = self._asked(model, inputs, Ask(self, num_items_in_batch))
        self.note(outputs)
        loss: Tensor = outputs["loss"]
        return loss

    def note(self, outputs: Mapping[str, Any]) -> None:
        """Counts what a model gave that was asked for the loss."""
        self.count(LossStats(outputs["kept"], outputs["valid"], outputs["weight_sum"]))

    def by_row(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The sum of losses of each row, and its number of valid labels: (batch, 2).

        For evaluation, where rows are told apart by whose they are; without gradient, and without
        the data's weights. Arguments and errors as of a call.
        """
        inputs = {key: value for key, value in inputs.items() if key != COLUMN}
        with torch.no_grad():
            outputs = self._asked(model, inputs, Ask(self, None, by_row=True))
        losses: Tensor = outputs["loss"]
        return torch.stack((losses, outputs["valid"].to(losses)), dim=-1)

    def _asked(self, model: nn.Module, inputs: Mapping[str, Any], ask: Ask) -> Any:
        return model(**self.prepared(model, inputs, ask))

    def prepared(self, model: nn.Module, inputs: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """What the model is called with to be asked for the loss of a batch.

        Raises:
            InputError: As of a call.
        """
        attach(causal_model(model))  # what others did to the forward since goes under ours
        if not isinstance(inputs, Mapping):
            raise InputError(
                f"the batch is of type {type(inputs).__name__}; it must be a mapping with "
                "input_ids and labels"
            )
        if inputs.get("labels") is None and inputs.get("shift_labels") is None:
            raise InputError(
                "the batch has no labels; have the data collator add them, such as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        weights = beside_labels(inputs)
        rest = {key: value for key, value in inputs.items() if key != COLUMN}
        return {**rest, **({} if weights is None else {COLUMN: weights}), "confidence": ask}


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
    model.__dict__.pop(_KNOWN_TO_ALL, None)
    if all(map(_is_here, model.parameters())):
        setattr(model, _TRANSFORM, measured(model, model.forward))
    setattr(model, _ORIGINAL, model.forward)

    # Trainer and generate read the signature of a model's forward
    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, confidence: Ask | None = None, **kwargs: Any) -> Any:
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
    for name in (_ORIGINAL, _TRANSFORM, _KNOWN_TO_ALL):
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


@dataclasses.dataclass
class _Targets:
    """What the hidden states of a batch are to predict.

    Attributes:
        labels: (batch, length) int64 where they stand beside the tokens; None where they are moved.
        target: (batch, length) int64: of each position, what follows it.
        weights: The data's, of the target's shape, or None.
    """

    labels: Tensor | None
    target: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, batch: dict[str, Any]) -> _Targets:
        """Those of a batch, taken out of it.

        Raises:
            InputError: They are no tensors, or the batch asks for a loss that would be left out.
        """
        labels, moved = batch.pop("labels", None), batch.pop("shift_labels", None)
        weights = batch.pop(COLUMN, None)
        for key, value in (("labels", labels), ("shift_labels", moved)):
            if value is not None and not isinstance(value, Tensor):
                raise InputError(f"{key} is of type {type(value).__name__}; give a torch.Tensor")
        if batch.get("output_router_logits"):
            raise InputError(
                "the batch asks for output_router_logits, whose loss would be left out; leave it "
                "out of the batch"
            )
        # labels move instead of hidden states: a slice of those would copy them
        target = moved if moved is not None else F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        if weights is not None:
            weights = weights if moved is not None else F.pad(weights, (0, 1))[..., 1:]
            # what stands before the text, such as PEFT's virtual tokens, has labels and no weights
            weights = F.pad(weights, (target.shape[-1] - weights.shape[-1], 0))
        return cls(labels if moved is None else None, target, weights)

    def check(self, hidden: Tensor, classes: int) -> None:
        """Refuse hidden states (batch, length, width) that they do not stand beside.

        Raises:
            InputError: There are more or fewer, or a label is none of the classes.
        """
        if hidden.shape[:-1] != self.target.shape:
            raise InputError(
                f"hidden states are {tuple(hidden.shape)} and labels {tuple(self.target.shape)}; "
                "there must be one label, not shifted, for each position"
            )
        if self.labels is not None and self.labels.device.type == "cpu":
            # by their places in the batch; the loss itself looks on every device, and waits for it
            check_labels(self.labels, classes, IGNORED)


def _forward(
    model: nn.Module,
    original: Callable[..., Any],
    ask: Ask,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> WeightedOutput:
    kwargs.pop("fused_lm_head", None)  # TRL asks so for what it gets here
    asked = _Targets.of(kwargs)
    if not _is_known(model):
        setattr(model, _TRANSFORM, measured(model, original))
    setattr(model, _KNOWN_TO_ALL, True)
    transform: LogitTransform = getattr(model, _TRANSFORM)
    compute = ask.compute
    options = LinearOptions(
        **compute.options.terms,
        ignore_index=IGNORED,
        reduction="none" if ask.by_row else compute.options.reduction,
        normalize=compute.options.normalize,
        logit_softcap=transform.cap,
    )
    results: list[tuple[Tensor, LossStats]] = []

    def instead(layer: OutputLayer, hidden: Tensor) -> Tensor:
        asked.check(hidden, layer.classes)
        hidden = hidden.to(layer.device)
        loss, stats = linear_loss(
            hidden,
            layer.weight(),
            asked.target.to(hidden.device),
            weight=compute.weight,
            options=options,
            sample_weight=None if asked.weights is None else asked.weights.to(hidden.device),
            linear_bias=layer.linear.bias,
            logit_scale=transform.scale,
            observe=ask.observe,
        )
        if ask.by_row:
            by_row = (asked.target != IGNORED).sum(-1)
            results.append((loss.sum(-1), stats._replace(valid=by_row)))
            return loss.new_zeros(1, 1, 1)
        # The layer's output must be what the backward comes from: FSDP2 hangs its hooks on it.
        # Three dimensions, for what the model does to logits
        loss = loss.reshape(1, 1, 1)
        results.append((loss, stats))
        return loss

    with PatchedHead(output_layer(model), instead):
        original(*args, **kwargs)
    if len(results) != 1:
        raise InputError(
            f"{type(model).__name__} called its output layer {len(results)} times in one forward; "
            "the loss needs exactly one call, with the hidden states of all positions"
        )
    return _output(ask, *results[0])


def _output(ask: Ask, loss: Tensor, stats: LossStats) -> WeightedOutput:
    """What a model gives for a loss, divided as it was asked for."""
    output = WeightedOutput(
        loss=loss, kept=stats.kept, valid=stats.valid, weight_sum=stats.weight_sum
    )
    if ask.by_row:
        return output
    output.loss = ask.compute.divided(loss.reshape(()), stats, ask.items)
    if stats.observed is not None:
        output.log_probs = -output.loss.reshape(1)
        output.label_mask, output.entropy, output.is_top1 = (t.reshape(1) for t in stats.observed)
    return output


def _is_known(model: nn.Module) -> bool:
    """Whether this process knows the transform, and all others with shards of the model do."""
    known = _TRANSFORM in model.__dict__
    if known and model.__dict__.get(_KNOWN_TO_ALL):
        return True
    sharded = not all(map(_is_here, model.parameters()))
    if sharded and dist.is_available() and dist.is_initialized():
        # one that had the model whole has tried it already; where another had not, all of them do,
        # for each forward is a collective
        everywhere = torch.tensor(int(known), device=output_layer(model).device)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return bool(everywhere.item())
    return known
