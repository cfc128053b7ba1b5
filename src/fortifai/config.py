"""The experiment's YAML, validated whole before any work starts.

A file is read, `--set` changes are merged in, arms are merged over the rest, and every fault found
is told in one message, each with its key and, for a misspelt key, the nearest name.
"""

from __future__ import annotations

import copy
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from fortifai.confidence import Focal, Keep, Truncate, Weight
from fortifai.errors import InputError, nearest
from fortifai.loop import regimes

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- the confidence weights -------------------------------------------------------------------


class KeepConfig(Section):
    """Cross entropy: every token counts fully."""

    kind: Literal["keep"] = "keep"

    def build(self) -> Weight:
        """The weight object."""
        return Keep()


class TruncateConfig(Section):
    """Truncated cross entropy: tokens with p > threshold count nothing."""

    kind: Literal["truncate"]
    threshold: Share = 0.9

    def build(self) -> Weight:
        """The weight object."""
        return Truncate(self.threshold)


class FocalConfig(Section):
    """Focal loss: weight (1 - p)^gamma."""

    kind: Literal["focal"]
    gamma: Annotated[float, Field(ge=0)] = 2.0
    detach_weight: bool = False

    def build(self) -> Weight:
        """The weight object."""
        return Focal(self.gamma, detach_weight=self.detach_weight)


WeightConfig = Annotated[KeepConfig | TruncateConfig | FocalConfig, Field(discriminator="kind")]


# --- regimes ----------------------------------------------------------------------------------


class FortifaiRegime(Section):
    """Algorithm 1 of ForTIFAI: every old split rewritten once more, one new clean split."""

    kind: Literal["fortifai"] = "fortifai"

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.fortifai


class ReplaceRegime(Section):
    """Each generation trains on the last generation's rewriting alone."""

    kind: Literal["replace"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.replace


class AccumulateRegime(Section):
    """Each generation trains on the real data and all rewritings so far."""

    kind: Literal["accumulate"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate


class AccumulateSubsampleRegime(Section):
    """As accumulate, drawn down to the size of the real data."""

    kind: Literal["accumulate-subsample"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate_subsample


class MixRegime(Section):
    """A fixed share of synthetic data, or synthetic data and a share of the original on top.

    Exactly one of: `alpha`, the share of each training set that is rewritten, the rest real
    (2509.04796); `keep_original`, the share of the original added to the whole rewriting
    (2305.17493).
    """

    kind: Literal["mix"]
    alpha: Share | None = None
    keep_original: Share | None = None

    @model_validator(mode="after")
    def _one_of(self) -> MixRegime:
        if (self.alpha is None) == (self.keep_original is None):
            raise ValueError("regime 'mix' takes exactly one of alpha and keep_original")
        return self

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        if self.alpha is not None:
            return functools.partial(regimes.mix_alpha, alpha=self.alpha)
        assert self.keep_original is not None
        return functools.partial(regimes.mix_keep_original, keep_original=self.keep_original)


RegimeConfig = Annotated[
    FortifaiRegime | ReplaceRegime | AccumulateRegime | AccumulateSubsampleRegime | MixRegime,
    Field(discriminator="kind"),
]


# --- corpora ----------------------------------------------------------------------------------

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class HubSource(Section):
    """A data set of the hub."""

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"


class FileSource(Section):
    """Local files: text, .jsonl, .parquet, gzip of these; globs allowed."""

    files: Files
    column: str = "text"


Source = FileSource | HubSource


class SplitsConfig(Section):
    """How the corpus is cut. `count` None: one split a generation, or 1 where the regime adds none.

    `tokens` None: all of the corpus, equally; otherwise the size of each split, the rest being
    left for pretraining. `held_out_tokens`: measure on so many tokens of the held-out text at most.
    """

    count: PositiveInt | None = None
    tokens: PositiveInt | None = None
    held_out_tokens: PositiveInt | None = None


class TextCorpus(Section):
    """Local text files."""

    kind: Literal["text"]
    files: Files
    column: str = "text"
    held_out: Files | Annotated[float, Field(gt=0, lt=1)] = 0.05


class HubCorpus(Section):
    """A data set of the hub; `held_out_split` names the text no generation trains on."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    held_out_split: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> HubCorpus:
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError("give one of held_out (a share) and held_out_split (a split's name)")
        return self


class BiosCorpus(Section):
    """The embedded corpus of invented biographies with exact questions."""

    kind: Literal["bios"]
    people: PositiveInt = 400
    phrasings: Annotated[int, Field(ge=1, le=5)] = 3
    seed: int = 0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1


class ImaginationCorpus(Section):
    """ForTIFAI's composite of WikiText-2, HellaSwag and GSM8K."""

    kind: Literal["imagination"]
    wikitext: Source
    hellaswag: Source
    gsm8k: Source
    pieces: PositiveInt = 6
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05


CorpusConfig = Annotated[
    TextCorpus | HubCorpus | BiosCorpus | ImaginationCorpus, Field(discriminator="kind")
]


class QuestionsConfig(Section):
    """Knowledge Retention questions; `bios` brings its own where no file is given."""

    files: tuple[str, ...] = ()


# --- the language model -----------------------------------------------------------------------


class PretrainConfig(Section):
    """Training before generation 0 on text outside the splits, once for all arms and seeds."""

    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 16
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_share: Share = 0.05


class ScratchConfig(Section):
    """A model made from sizes, with a BPE tokenizer trained on the clean corpus."""

    architecture: Literal["llama", "gemma"] = "llama"
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    max_positions: PositiveInt | None = None
    tie_embeddings: bool = True
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _divisible(self) -> ScratchConfig:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}"
            )
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}: rotary positions need "
                "an even number"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        return self


class CausalLMConfig(Section):
    """A causal language model: `base` (hub id or folder) or `scratch`, exactly one of them."""

    kind: Literal["causal_lm"]
    base: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_of(self) -> CausalLMConfig:
        if (self.base is None) == (self.scratch is None):
            raise ValueError(
                "family 'causal_lm' takes exactly one of base (a hub id or a folder) and scratch "
                "(sizes of a new model)"
            )
        return self


class TrainConfig(Section):
    """How a generation is trained."""

    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = 64
    gradient_accumulation: PositiveInt = 1
    block: Annotated[int, Field(ge=2)] = 128
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_share: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    normalize: Literal["valid", "kept"] = "valid"
    checkpoint: Literal["last", "best_held_out", "best_kr"] = "last"
    report_to: tuple[str, ...] = ()


class Greedy(Section):
    """The most probable token each time."""

    kind: Literal["greedy"] = "greedy"


class Beam(Section):
    """Beam search; the defaults are those of ForTIFAI's code."""

    kind: Literal["beam"]
    beams: Annotated[int, Field(ge=2)] = 5
    repetition_penalty: PositiveFloat = 3.0
    length_penalty: float = 1.0


class Sample(Section):
    """Random sampling."""

    kind: Literal["sample"]
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


DecodingConfig = Annotated[Greedy | Beam | Sample, Field(discriminator="kind")]


class RegenerateConfig(Section):
    """How a generation rewrites the corpus.

    `blocks`: every `new_tokens` tokens are rewritten from the `context` tokens before them.
    `documents`: the first `keep` tokens of each document stay, the rest is written anew.
    """

    mode: Literal["blocks", "documents"] = "blocks"
    context: PositiveInt = 512
    new_tokens: PositiveInt = 32
    keep: PositiveInt = 64
    batch_size: PositiveInt | None = None
    decoding: DecodingConfig = Greedy()


# --- measures ---------------------------------------------------------------------------------


class FailureLevel(Section):
    """A level whose crossing counts as failure; see `fortifai.stats.time_to_failure`."""

    measure: str
    on: str = "split-0"
    level: float | Literal["half_gain"]
    direction: Literal["below", "above"] = "below"


class PassagesConfig(Section):
    """The passages of the first split that are followed through all generations."""

    count: Annotated[int, Field(ge=0)] = 3
    tokens: PositiveInt = 96


DEFAULT_LEVELS = (
    FailureLevel(measure="kr.mean", level=0.75),
    FailureLevel(measure="kr.mean", level="half_gain"),
)


class ArmConfig(Section):
    """One arm, whole: everything that may differ between arms."""

    weight: WeightConfig = KeepConfig()
    regime: RegimeConfig = FortifaiRegime()
    start: Literal["previous", "base", "scratch"] = "previous"
    family: CausalLMConfig
    train: TrainConfig = TrainConfig()
    regenerate: RegenerateConfig = RegenerateConfig()


class ExperimentConfig(Section):
    """The whole experiment, resolved: each arm stands by itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    generations: PositiveInt = 6
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    threads: PositiveInt = 1
    keep: Literal["last", "all"] = "last"
    baseline: str
    corpus: CorpusConfig
    splits: SplitsConfig = SplitsConfig()
    questions: QuestionsConfig = QuestionsConfig()
    passages: PassagesConfig = PassagesConfig()
    time_to_failure: tuple[FailureLevel, ...] = DEFAULT_LEVELS
    arms: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ArmConfig],
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _whole(self) -> ExperimentConfig:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not an arm; the arms are {', '.join(self.arms)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names a seed twice")
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        return self

    def _check_arm(self, name: str, arm: ArmConfig) -> None:
        if arm.family != self.family:
            raise ValueError(f"arm {name!r}: all arms of one experiment share one family")
        if isinstance(arm.regime, FortifaiRegime) and self.split_count != self.generations:
            raise ValueError(
                f"arm {name!r}: regime 'fortifai' adds one clean split a generation, so "
                f"splits.count ({self.split_count}) must equal generations ({self.generations})"
            )
        limit = arm.family.scratch.max_positions if arm.family.scratch else None
        wanted = arm.regenerate.context + arm.regenerate.new_tokens
        if limit is not None and arm.regenerate.mode == "blocks" and wanted > limit:
            raise ValueError(
                f"arm {name!r}: context {arm.regenerate.context} + new_tokens "
                f"{arm.regenerate.new_tokens} is {wanted}, longer than the model's "
                f"max_positions {limit}"
            )
        if limit is not None and arm.train.block > limit:
            raise ValueError(
                f"arm {name!r}: block {arm.train.block} is longer than the model's "
                f"max_positions {limit}"
            )

    @property
    def split_count(self) -> int:
        """Number of splits the corpus is cut into."""
        if self.splits.count is not None:
            return self.splits.count
        grows = any(isinstance(arm.regime, FortifaiRegime) for arm in self.arms.values())
        return self.generations if grows else 1

    @property
    def family(self) -> CausalLMConfig:
        """The family that all arms share."""
        return next(iter(self.arms.values())).family

    @property
    def positions(self) -> int:
        """Positions a scratch model needs: the longest block or context of any arm."""
        return max(
            max(arm.train.block, arm.regenerate.context + arm.regenerate.new_tokens)
            for arm in self.arms.values()
        )


# --- reading ----------------------------------------------------------------------------------

_ARM_KEYS = frozenset(ArmConfig.model_fields)
_TOP_KEYS = frozenset(ExperimentConfig.model_fields) | _ARM_KEYS


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("fortifai.presets")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def read_raw(preset_or_file: str) -> tuple[dict[str, Any], Path]:
    """The YAML of a preset or file as a mapping, and the folder its paths are relative to.

    Raises:
        InputError: There is no such preset or file, or it is not a YAML mapping.
    """
    path = Path(preset_or_file)
    if preset_or_file in preset_names():
        text = resources.files("fortifai.presets").joinpath(f"{preset_or_file}.yaml").read_text()
        root = Path.cwd()
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not a UTF-8 text file; give a YAML file or one of the presets "
                f"{', '.join(preset_names())}"
            ) from error
        root = path.parent.resolve()
    else:
        raise InputError(
            f"{preset_or_file!r} is neither a file nor a preset{nearest(path.name, preset_names())}"
            f"; presets are {', '.join(preset_names())}"
        )
    return _mapping(text, preset_or_file), root


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{what} holds no YAML mapping; it must say at least name, corpus, family")
    return data


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and numbers that refuses a key said twice.

    YAML 1.1, which PyYAML speaks, takes the key `on` for true and 1e-3 for text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if not tag.endswith((":bool", ":float"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$"),
    list("-+.0123456789"),
)


def apply_set(raw: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Merge ``key.path=value`` changes (values are YAML) into a copy of `raw`.

    A dot inside a name, such as that of the arm ``tce-0.5``, is found by trying the names that
    exist first, longest first.
    """
    out = copy.deepcopy(raw)
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or not path:
            raise InputError(f"--set {change!r} is not of the form key.path=value")
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise InputError(f"--set {change!r}: the value is not valid YAML") from error
        _set_path(out, path.split("."), parsed, change)
    return out


def _set_path(node: dict[str, Any], keys: list[str], value: Any, change: str) -> None:
    for take in range(len(keys) - 1, 0, -1):
        name = ".".join(keys[:take])
        if isinstance(node.get(name), dict):
            return _set_path(node[name], keys[take:], value, change)
    name = ".".join(keys)
    if len(keys) == 1 or name in node:
        node[name] = value
        return None
    if isinstance(node.get(keys[0]), (list, str, int, float)):
        raise InputError(f"--set {change!r}: {keys[0]!r} is not a mapping")
    node[keys[0]] = {}
    return _set_path(node[keys[0]], keys[1:], value, change)


def merge(base: Any, over: Any) -> Any:
    """`over` deep-merged over `base`: mappings merge, everything else is replaced.

    A mapping whose ``kind`` changes replaces the old one, whose keys belong to the other kind.
    """
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return copy.deepcopy(over)
    if "kind" in over and "kind" in base and over["kind"] != base["kind"]:
        return copy.deepcopy(dict(over))
    out = {k: copy.deepcopy(v) for k, v in base.items()}
    for key, value in over.items():
        out[key] = merge(out.get(key), value)
    return out


def resolve(raw: Mapping[str, Any]) -> ExperimentConfig:
    """Validate a raw mapping: every fault in one `InputError`, named by its key.

    The keys of an arm (weight, regime, start, family, train, regenerate) may stand at the top
    level, for all arms, and in an arm, for it alone.
    """
    faults = [
        f"unknown key {key!r}{nearest(str(key), _TOP_KEYS)}; allowed are "
        f"{', '.join(sorted(_TOP_KEYS))}"
        for key in raw
        if key not in _TOP_KEYS
    ]
    if faults:
        raise InputError("; ".join(faults))
    common = {k: v for k, v in raw.items() if k in _ARM_KEYS}
    arms = raw.get("arms")
    data = {k: v for k, v in raw.items() if k not in _ARM_KEYS}
    if isinstance(arms, Mapping) and all(
        isinstance(a, Mapping) or a is None for a in arms.values()
    ):
        data["arms"] = {name: merge(common, arm or {}) for name, arm in arms.items()}
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, raw)) from error


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> str:
    sentences: list[str] = []
    for fault in error.errors(include_url=False):
        where = [str(p) for p in fault["loc"]]
        if where[:1] == ["arms"] and len(where) > 2 and not _in_arm(raw, where):
            where = where[2:]  # said once at the top level, so told once
        sentence = _sentence(fault, where)
        if sentence not in sentences:
            sentences.append(sentence)
    return "; ".join(sentences)


def _in_arm(raw: Mapping[str, Any], where: Sequence[str]) -> bool:
    arm = raw.get("arms", {}).get(where[1]) or {}
    return isinstance(arm, Mapping) and where[2] in arm


def _sentence(fault: Any, where: list[str]) -> str:
    kind, given = fault["type"], fault.get("input")
    key = ".".join(where) or "the configuration"
    if kind == "extra_forbidden":
        allowed = sorted(_fields_at(where[:-1]))
        return (
            f"unknown key {key!r}{nearest(where[-1], allowed)}; allowed here are "
            f"{', '.join(allowed)}"
        )
    if kind == "missing":
        return f"missing key {key!r}"
    if kind == "union_tag_not_found":
        return f"{key!r} needs a kind, one of {fault['ctx'].get('discriminator', 'kind')!s}"
    if kind == "union_tag_invalid":
        tags = [t.strip(" '") for t in fault["ctx"]["expected_tags"].split(",")]
        tag = fault["ctx"]["tag"]
        return f"{key}.kind is {tag!r}; allowed are {', '.join(tags)}{nearest(str(tag), tags)}"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message if key == "the configuration" else f"{key}: {message}"
    message = message.replace("Input should be", "must be", 1)
    return f"{key} is {given!r}; it {message[0].lower()}{message[1:]}"


def _fields_at(where: Sequence[str]) -> set[str]:
    """Names of the fields allowed at a location of a pydantic error, tags of unions included."""
    models: list[type[BaseModel]] = [ExperimentConfig]
    for step in where:
        found: list[type[BaseModel]] = []
        for model in models:
            if step in model.model_fields:
                found += list(_models(model.model_fields[step].annotation))
            elif step in _TOP_KEYS and model is ExperimentConfig and step in _ARM_KEYS:
                found += list(_models(ArmConfig.model_fields[step].annotation))
            elif _tag(model) == step:
                found.append(model)
        models = found or models  # an arm's name, a list index or a tag: stay
    return {name for model in models for name in model.model_fields}


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        if isinstance(inner, (type, types.UnionType, types.GenericAlias)) or typing.get_args(inner):
            yield from _models(inner)


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two plain configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            name
            for k in keys
            for name in difference(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else str(k))
        ]
    return [] if old == new else [prefix]


def dump(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def plain(config: ExperimentConfig) -> dict[str, Any]:
    """The resolved configuration as plain lists, mappings and numbers."""
    out: dict[str, Any] = config.model_dump(mode="json")
    return out
