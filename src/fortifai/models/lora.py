"""LoRA adapters (Hu et al., 2106.09685), through peft: W + (alpha / r) B A, B and A of rank r.

A model is trained through adapters of its layers, which are merged into its weights afterwards, so
that it reads and writes as fast as any other. The adapter itself is handed out besides: with the
model that it was trained on it is all that need be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fortifai.errors import InputError, reason
from fortifai.models.hub import ADAPTER, exists
from fortifai.models.low_rank import in_few_passes

if TYPE_CHECKING:
    from fortifai.models.options import LoraOptions

WEIGHTS = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A trained adapter, apart from its model.

    Attributes:
        settings: peft's, as its adapter_config.json has them.
        weights: By peft's names, on the CPU.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def save(self, folder: Path, base: Path) -> None:
        """Write it as peft does, with the way from `folder` to its base model's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        told = dict(self.settings) | {"base_model_name_or_path": os.path.relpath(base, folder)}
        text = json.dumps(told, indent=1, sort_keys=True) + "\n"
        (folder / ADAPTER).write_text(text, encoding="utf-8")
        save_file(dict(self.weights), folder / WEIGHTS, {"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read what `save` or peft wrote.

        Raises:
            InputError: It is torn, or peft is not installed.
        """
        peft = _peft(str(folder))
        settings = _settings(folder)
        try:
            weights = peft.load_peft_weights(str(folder), device="cpu")
        except Exception as error:  # whatever peft, safetensors and pickle say of torn files
            raise InputError(
                f"the weights of the adapter {folder} could not be read ({reason(error)}); give "
                f"its folder with {WEIGHTS}"
            ) from error
        return cls(settings, weights)


def base_of(folder: str | Path) -> str:
    """The name of the model that an adapter belongs to; a folder beside it as a path.

    Raises:
        InputError: The adapter does not say so.
    """
    name = _settings(Path(folder)).get("base_model_name_or_path")
    if not name:
        raise InputError(
            f"{folder} is a LoRA adapter that does not name its base model; write it into its "
            f"{ADAPTER} as base_model_name_or_path, or merge the adapter and give the whole model"
        )
    beside = os.path.normpath(Path(folder) / str(name))
    return beside if exists(beside) else str(name)


def merge_saved(model: PreTrainedModel, folder: str | Path) -> None:
    """Add a saved adapter to the weights of its base model, in place.

    Raises:
        InputError: It belongs to another model, is none that can be merged, or is not whole.
    """
    adapter = Adapter.load(Path(folder))
    wrapped = _wrap(model, adapter.settings, str(folder))
    _fill(wrapped, adapter, str(folder))
    _merge(wrapped)


@contextlib.contextmanager
def training(
    model: PreTrainedModel, settings: LoraOptions, start: Adapter | None = None
) -> Iterator[list[Adapter]]:
    """Inside the block only adapters of `model` are trained; at its end they are merged into it.

    New ones begin as B = 0 and A drawn from PyTorch's global generator.

    Args:
        model: Changed in place; as it was before where the block raises.
        settings: Rank, scale, dropout, which layers.
        start: An adapter to train on; it is one of this model.

    Yields:
        A list, which the trained adapter is put into at the end.

    Raises:
        InputError: peft is not installed, or the settings name layers that the model has not.
    """
    peft = _peft("train.lora")
    told = peft.LoraConfig(**_chosen(model, settings)).to_dict()
    wrapped = _wrap(model, told, "train.lora")
    if start is not None:
        _fill(wrapped, start, "the generation before")
    done: list[Adapter] = []
    try:
        with in_few_passes(wrapped):
            yield done
        weights = _weights(wrapped)
        kept = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
        done.append(Adapter(_plain(told), kept))
        _merge(wrapped)
    except BaseException:
        wrapped.unload()
        raise
    finally:
        model.requires_grad_(True)


def _chosen(model: PreTrainedModel, settings: LoraOptions) -> dict[str, Any]:
    """Settings as peft takes them, the layers by the last part of their names."""
    linear = _linear(model)
    inside = _layers_of_text(model, linear)
    if settings.targets == "all-linear":
        targets = {name.rpartition(".")[2] for name in inside}
    else:
        targets = set(settings.targets)
        _check_names("targets", targets, inside)
    _check_saved(model, settings.modules_to_save)
    beside = [n for n in linear if n not in inside and any(_is_named(n, t) for t in targets)]
    return {
        "task_type": "CAUSAL_LM",
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted(targets),
        "exclude_modules": sorted(beside) or None,
        "modules_to_save": sorted(settings.modules_to_save) or None,
    }


def _linear(model: PreTrainedModel) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]


def _layers_of_text(model: PreTrainedModel, linear: list[str]) -> list[str]:
    """Those of the part that reads text, without the output layer: no vision tower."""
    decoder = {id(m) for m in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    return [n for n in linear if id(modules[n]) in decoder and modules[n] is not head]


def _is_named(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _check_names(key: str, wanted: Any, there: list[str]) -> None:
    absent = sorted(name for name in wanted if not any(_is_named(m, name) for m in there))
    if absent:
        known = sorted({name.rpartition(".")[2] for name in there if name} - {""})
        shown = ", ".join(name for name in known if not name.isdigit())
        raise InputError(
            f"train.lora.{key} names {', '.join(absent)}, which the model has not; it has {shown}"
        )


def _check_saved(model: PreTrainedModel, wanted: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    _check_names("modules_to_save", wanted, list(modules))
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    tied = [n for n in wanted for key, m in modules.items() if m in ends and _is_named(key, n)]
    if tied:
        # peft trains a copy of one of the two, and the merged model would not be the trained one
        raise InputError(
            f"train.lora.modules_to_save names {tied[0]}, whose weights are those of the input "
            "embedding and of the output layer at once in this model; leave it out"
        )


def _peft(what: str) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            f"{what} needs the package peft, not installed here; install fortifai[peft]"
        )
    import peft

    return peft


def _settings(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / ADAPTER} could not be read ({reason(error)})") from error
    if not isinstance(told, dict):
        raise InputError(f"{folder / ADAPTER} is no mapping, so no adapter's; give peft's own file")
    return told


def _wrap(model: PreTrainedModel, settings: Mapping[str, Any], what: str) -> Any:
    """A model of peft around `model`, whose layers it replaces in place."""
    peft = _peft(what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_peft_type(**dict(settings))
            if config.is_prompt_learning:
                raise ValueError(f"{config.peft_type} has no weights to merge")
            return peft.get_peft_model(model, config)
    except Exception as error:  # whatever peft says of settings that do not fit
        raise InputError(
            f"the adapter of {what} does not fit {type(model).__name__} ({reason(error)}); give "
            "one that was trained on this model"
        ) from error


def _fill(wrapped: Any, adapter: Adapter, what: str) -> None:
    peft = _peft(what)
    wanted = set(_weights(wrapped))
    absent, others = sorted(wanted - set(adapter.weights)), sorted(set(adapter.weights) - wanted)
    if absent or others:
        told = f"{absent[0]} is missing" if absent else f"{others[0]} has no place"
        raise InputError(
            f"the adapter of {what} does not fit its base model ({told}); give one that was "
            "trained on this model"
        )
    try:
        peft.set_peft_model_state_dict(wrapped, dict(adapter.weights))
    except RuntimeError as error:
        raise InputError(
            f"the adapter of {what} does not fit its base model ({reason(error)}); give one that "
            "was trained on this model"
        ) from error


def _weights(wrapped: Any) -> dict[str, Tensor]:
    # "auto" asks the hub for the base model's vocabulary, and by its answer adds the embeddings
    peft = _peft("train.lora")
    weights: dict[str, Tensor] = peft.get_peft_model_state_dict(
        wrapped, save_embedding_layers=False
    )
    return weights


def _merge(wrapped: Any) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_and_unload()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, the same whatever the order of a set."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        value = getattr(value, "value", value)
        out[key] = sorted(value) if isinstance(value, (set, frozenset)) else value
    return json.loads(json.dumps(out, default=str))
