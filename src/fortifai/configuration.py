"""Reading an experiment's YAML: presets and files, `--set`, the merging of arms, and its faults.

Every fault found is told in one message, each with its key and, for a misspelt key, the nearest
name.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from fortifai.errors import InputError, nearest
from fortifai.lab.plugins import NONE, Plugins
from fortifai.lab.spec import AnyExperiment, with_plugins

if TYPE_CHECKING:
    from fortifai.evals.benchmarks import Benchmark

KINDS: Mapping[str, str] = {
    "causal_lm": "fortifai.text.spec:TextExperiment",
    "gaussian": "fortifai.points.spec:PointsExperiment",
    "gmm": "fortifai.points.spec:PointsExperiment",
    "vae": "fortifai.images.spec:ImagesExperiment",
}
"""The experiment for each kind of family: a module, imported when it is asked for, and a class."""

_OF_PLUGINS = re.compile(r"(^|\.)(weight|regime|corpus|source|cures\.\d+|after_fit\.\d+)$")
"""Keys of what a plugin may bring."""


def experiment_type(family: str) -> type[AnyExperiment]:
    """The experiment for a kind of family, one of `KINDS`."""
    module, _, name = KINDS[family].partition(":")
    found: type[AnyExperiment] = getattr(importlib.import_module(module), name)
    return found


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
        text = (
            resources.files("fortifai.presets")
            .joinpath(f"{preset_or_file}.yaml")
            .read_text("utf-8")
        )
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


def read_benchmarks(path: Path) -> list[Benchmark]:
    """Benchmarks from a YAML file: what stands under `benchmarks` in an experiment's.

    Raises:
        InputError: There is no such file, or a fault in it, named by its key.
    """
    # here, so that a Gaussian need not wait for what only text has
    from fortifai.evals.benchmarks import Benchmark, Named

    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}; give a YAML file that names benchmarks")
    raw, _ = read_raw(str(path))
    entries = raw.get("benchmarks", raw)
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path} names no benchmarks; write such as `hellaswag: {{data: FILE}}`")
    try:
        named = TypeAdapter(Annotated[dict[str, Benchmark], Named]).validate_python(entries)
        return list(named.values())
    except ValidationError as error:
        allowed = ", ".join(_fields(Benchmark))
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'a benchmark'}: "
            f"{fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_url=False)
        ]
        raise InputError(f"{path}: {'; '.join(faults)}; allowed are {allowed}") from error


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

    A mapping whose ``kind`` changes replaces the old one, whose keys belong to the other kind; so
    does a context told ``exactly`` one told otherwise, and the other way round.
    """
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return copy.deepcopy(over)
    if "kind" in over and "kind" in base and over["kind"] != base["kind"]:
        return copy.deepcopy(dict(over))
    if base and over and ("exactly" in base) != ("exactly" in over):
        return copy.deepcopy(dict(over))
    out = {k: copy.deepcopy(v) for k, v in base.items()}
    for key, value in over.items():
        out[key] = merge(out.get(key), value)
    return out


def resolve(raw: Mapping[str, Any], plugins: Plugins = NONE) -> AnyExperiment:
    """Validate a raw mapping: every fault in one `InputError`, named by its key.

    The family decides which keys there are. The keys of an arm (weight, regime, family, for some
    also start, train, regenerate) may stand at the top level, for all arms, and in an arm, for it
    alone.

    Args:
        raw: What a YAML says.
        plugins: Whose parts it may name.
    """
    schema = with_plugins(experiment_type(_family_of(raw)), plugins)
    arm_keys = _arm(schema).model_fields
    allowed = schema.model_fields.keys() | arm_keys.keys()
    faults = [
        f"unknown key {key!r}{_elsewhere(str(key), _family_of(raw))}"
        f"{nearest(str(key), allowed)}; allowed are {', '.join(sorted(allowed))}"
        for key in raw
        if key not in allowed
    ]
    if faults:
        raise InputError("; ".join(faults))
    common = {k: v for k, v in raw.items() if k in arm_keys}
    arms = raw.get("arms")
    data = {k: v for k, v in raw.items() if k not in arm_keys}
    if isinstance(arms, Mapping) and all(
        isinstance(a, Mapping) or a is None for a in arms.values()
    ):
        data["arms"] = {name: merge(common, arm or {}) for name, arm in arms.items()}
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, raw, schema)) from error


def _family_of(raw: Mapping[str, Any]) -> str:
    """The kind of the family, which all arms share; told at the top level or in the arms."""
    arms = raw.get("arms")
    inner = (
        [a for a in arms.values() if isinstance(a, Mapping)] if isinstance(arms, Mapping) else []
    )
    for place in (raw, *inner):
        family = place.get("family")
        if isinstance(family, Mapping) and "kind" in family:
            kind = family["kind"]
            if not isinstance(kind, str) or kind not in KINDS:
                raise InputError(
                    f"family.kind is {kind!r}; allowed are {', '.join(KINDS)}"
                    f"{nearest(str(kind), KINDS)}"
                )
            return kind
        if isinstance(family, Mapping):
            raise InputError(f"missing key 'family.kind'; allowed are {', '.join(KINDS)}")
    raise InputError(
        f"missing key 'family'; it must say at least its kind, one of {', '.join(KINDS)}"
    )


def _elsewhere(key: str, family: str) -> str:
    """Whose key it is, where another family knows it."""
    schemas = {kind: experiment_type(kind) for kind in KINDS}
    known = [
        kind
        for kind, schema in schemas.items()
        if key in schema.model_fields or key in _arm(schema).model_fields
    ]
    return f" for family {family!r}, it belongs to {', '.join(known)}" if known else ""


def _arm(schema: type[AnyExperiment]) -> type[BaseModel]:
    return schema.arm


def _explain(error: ValidationError, raw: Mapping[str, Any], schema: type[AnyExperiment]) -> str:
    sentences: list[str] = []
    for fault in error.errors(include_url=False):
        where = [str(p) for p in fault["loc"]]
        if where[-1:] == ["[key]"]:
            where = [f"a name in {'.'.join(where[:-2])}"]
        if where[:1] == ["arms"] and len(where) > 2 and not _in_arm(raw, where):
            where = where[2:]  # said once at the top level, so told once
        sentence = _sentence(fault, where, schema)
        if sentence not in sentences:
            sentences.append(sentence)
    return "; ".join(sentences)


def _in_arm(raw: Mapping[str, Any], where: Sequence[str]) -> bool:
    arm = raw.get("arms", {}).get(where[1]) or {}
    return isinstance(arm, Mapping) and where[2] in arm


def _sentence(fault: Any, where: list[str], schema: type[AnyExperiment]) -> str:
    kind, given = fault["type"], fault.get("input")
    key = ".".join(_walk(where, schema)[1]) or "the configuration"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = sorted(_fields_at(where[:-1], schema))
        return (
            f"unknown key {key!r}{nearest(where[-1], allowed)}; allowed here are "
            f"{', '.join(allowed)}"
        )
    if kind == "missing":
        return f"missing key {key!r}"
    if kind == "union_tag_not_found":
        kinds = [tag for tag in map(_tag, _walk(where, schema)[0]) if tag]
        return f"{key!r} needs a kind, one of {', '.join(kinds)}"
    if kind == "union_tag_invalid":
        tags = [t.strip(" '") for t in fault["ctx"]["expected_tags"].split(",")]
        tag = fault["ctx"]["tag"]
        hint = nearest(str(tag), tags)
        if not hint and _OF_PLUGINS.search(key):
            hint = "; one of your own needs --plugin MODULE"
        return f"{key}.kind is {tag!r}; allowed are {', '.join(tags)}{hint}"
    if kind == "too_short":
        return f"{key} is {given!r}; it needs at least {fault['ctx']['min_length']}"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message if key == "the configuration" else f"{key}: {message}"
    message = message.replace("Input should be", "must be", 1)
    return f"{key} is {given!r}; it {message[0].lower()}{message[1:]}"


def _fields_at(where: Sequence[str], schema: type[AnyExperiment]) -> set[str]:
    """Names of the fields allowed at a location of a pydantic error, tags of unions included."""
    models, _ = _walk(where, schema)
    return {name for model in models for name in _fields(model)}


def _fields(section: Any) -> dict[str, Any]:
    """The types of a section's keys by name."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = typing.get_type_hints(section)
    # what a field's metadata says is that the YAML tells it in another way, such as by the key
    told = [field.name for field in dataclasses.fields(section) if not field.metadata]
    return {name: hints[name] for name in told}


def _walk(where: Sequence[str], schema: type[AnyExperiment]) -> tuple[list[type], list[str]]:
    """The sections that may stand at a location, and the location as the YAML spells it.

    A pydantic error names the kind of a section where it is one of several; the YAML does not.
    """
    models: list[type] = [schema]
    arm, spelt = _fields(_arm(schema)), []
    for step in where:
        # where a section is one of several, its kind comes first: it may be a field's name, too
        found = [model for model in models if len(models) > 1 and _tag(model) == step]
        tagged = bool(found)
        for model in () if tagged else models:
            inner = _fields(model) | (arm if model is schema else {})
            if step in inner:
                found += _models(inner[step])
        models = found or models  # an arm's name, a list index or a tag: stay
        if not tagged:
            spelt.append(step)
    return models, spelt


def _tag(model: type) -> str | None:
    kind = _fields(model).get("kind")
    return typing.get_args(kind)[0] if kind else None


def _models(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        yield annotation
    for inner in typing.get_args(annotation):
        if isinstance(inner, (type, types.UnionType, types.GenericAlias)) or typing.get_args(inner):
            yield from _models(inner)
