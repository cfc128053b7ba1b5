"""The pages of the site that are read off the code: YAML keys, commands, measures, presets, API."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from fortifai import configuration
from fortifai.cli.app import app
from fortifai.lab.measures import Measure
from fortifai.losses import named

MODULES: Mapping[str, str] = {
    "fortifai": "losses, on logits and on hidden states",
    "fortifai.weights": "the confidence weights",
    "fortifai.integrations.transformers": "transformers' Trainer",
    "fortifai.integrations.trl": "TRL's SFTTrainer",
    "fortifai.integrations.lightning": "Lightning",
    "fortifai.integrations.hidden_states": "a training loop of your own",
    "fortifai.audit": "is a model or a corpus collapsing",
    "fortifai.stats": "intervals, tests, times to failure",
    "fortifai.evals.phases": "the phases of knowledge collapse",
    "fortifai.points.theory": "what theory expects of Gaussians",
    "fortifai.configuration": "an experiment's YAML, read",
    "fortifai.lab.experiment": "an experiment, run",
    "fortifai.report": "the report of runs",
    "fortifai.lab.cures": "cures, and how to write one",
    "fortifai.lab.regimes": "regimes, and how to write one",
    "fortifai.lab.measures": "measures, and how to write one",
    "fortifai.text.sources": "corpora of text",
    "fortifai.points.sources": "sources of points",
    "fortifai.images.sources": "sources of images",
    "fortifai.models.causal_lm": "a causal language model",
    "fortifai.data.text": "text as documents",
    "fortifai.errors": "the errors that are raised",
}
"""The public modules, and what each is for."""

EXPERIMENTS = {"causal_lm": "Text", "gaussian": "Points", "vae": "Images"}
"""A family for each kind of data; `gmm` shares the experiment of `gaussian`."""


def pages() -> dict[str, str]:
    """Every page, Markdown by its name below ``reference/``."""
    api = {f"api/{name}.md": _module(name, what) for name, what in MODULES.items()}
    listed = "\n".join(f"- [`{name}`]({name}.md): {what}" for name, what in MODULES.items())
    index = f"# Python API\n\n`import fortifai` needs torch alone.\n\n{listed}\n"
    return {
        "yaml.md": yaml_page(),
        "commands.md": commands_page(),
        "measures.md": measures_page(),
        "presets.md": presets_page(),
        "api/index.md": index,
        **api,
    }


def _module(name: str, what: str) -> str:
    named = _named() if name == "fortifai" else ""
    return f"# {name}\n\n{what[0].upper()}{what[1:]}.\n\n{named}::: {name}\n"


def _named() -> str:
    """The losses of one kind of weight, which are made by a function: known when imported only."""
    parts = []
    for name, loss in vars(named).items():
        if inspect.isfunction(loss) and loss.__module__ == named.__name__:
            told = inspect.getdoc(loss) or ""
            parameters = inspect.signature(loss).parameters.values()
            own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
            given = ", ".join(p.name for p in parameters if p not in own)
            lines = re.sub(": '(.*?)'", r": \1", "".join(f"    {p},\n" for p in own))
            told = told.split("\nRaises:")[0].strip()
            call = f"{name}(\n    {given}, *,\n{lines})"
            parts.append(f"## {name}\n\n```python\n{call}\n```\n\n{told}\n\n")
    return "".join(parts)


# --- YAML -------------------------------------------------------------------------------------


def yaml_page() -> str:
    """The keys of every experiment, from the classes that read them."""
    parts = [
        "# YAML keys\n\nRead off the classes that read the YAML. A key without a default must be "
        "given. `fortifai show FILE` prints what a YAML comes to. The keys of an arm may also "
        "stand at the top, for all arms. How they work: [experiments](../experiments.md).",
    ]
    seen: set[str] = set()
    for family, title in EXPERIMENTS.items():
        schema = configuration.experiment_type(family).model_json_schema()
        definitions = schema["$defs"]
        parts += [f"## {title}", _section(schema, definitions)]
        for name, key in _places(schema, definitions).items():
            if name in seen:
                continue  # told of another kind of data
            seen.add(name)
            kind = definitions[name]["properties"].get("kind", {}).get("const")
            heading = f"`{key}`, kind `{kind}`" if kind else f"`{key}`"
            section = _section(definitions[name], definitions)
            parts.append(f"### {heading} {{ #{name.lower()} }}\n\n{section}")
    return "\n\n".join(parts) + "\n"


def _places(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, str]:
    """Each definition that a section leads to, depth first, and the key that leads there."""
    found: dict[str, str] = {}

    def walk(section: Mapping[str, Any]) -> None:
        for key, field in section.get("properties", {}).items():
            for name in re.findall(r"'\$ref': '#/\$defs/(\w+)'", str(field)):
                if name not in found:
                    found[name] = key
                    walk(definitions[name])

    walk(schema)
    return found


def _section(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    rows = ["| key | value | default |", "| --- | --- | --- |"]
    needed = set(schema.get("required", ()))
    for key, field in schema.get("properties", {}).items():
        default = "" if key in needed else _default(field)
        rows.append(f"| `{key}` | {_value(field, definitions)} | {default} |")
    return f"{_prose(schema.get('description', ''))}\n\n" + "\n".join(rows)


def _prose(docstring: str) -> str:
    """A docstring without what it says to Python."""
    kept = docstring.split("\nRaises:")[0].replace("\nAttributes:\n", "\n")
    return "\n".join(line.strip() for line in kept.split("\n")).strip()


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    if isinstance(value, dict):  # a section of its own, which tells its defaults
        return f"kind `{value['kind']}`" if "kind" in value else "its defaults"
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _value(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a key takes, in words, with links to the sections it may be."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        kind = definitions[name]["properties"].get("kind", {}).get("const")
        return f"[{f'kind `{kind}`' if kind else 'these keys'}](#{name.lower()})"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    options = field.get("oneOf") or field.get("anyOf")
    if options:
        told = [_value(o, definitions) for o in options if o.get("type") != "null"]
        return " or ".join(told)
    kind = field.get("type")
    if kind == "array":
        return f"a list, each {_value(field.get('items', {}), definitions)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        if isinstance(inner, dict):
            return f"names, each with {_value(inner, definitions)}"
        return "a mapping"
    words = {"integer": "a whole number", "number": "a number", "string": "a text"}
    return words.get(str(kind), "`true`, `false`" if kind == "boolean" else "anything") + (
        " and".join(_limits(field))
    )


def _limits(field: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for key, sign in signs.items():
        if key in field:
            yield f" {sign} {field[key]:,}"


# --- commands, measures, presets ----------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by what is typed, ``kr build`` after ``kr``."""
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        inner = getattr(command, "commands", {})
        if not inner:
            yield name, command
        waiting += [(f"{name} {word}".strip(), sub) for word, sub in inner.items()]


def commands_page() -> str:
    """Every command with its arguments and options, as its help tells them."""
    parts = [
        "# Commands\n\nExit codes are told in [experiments](../experiments.md#systems-and-disks)."
    ]
    for name, command in commands():
        context = command.context_class(command, info_name=f"fortifai {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        records = [p.get_help_record(context) for p in command.get_params(context)]
        rows = ["| | |", "| --- | --- |"] + [
            f"| `{left}` | {_escaped(right)} |" for left, right in filter(None, records)
        ]
        parts.append(
            f"## {name}\n\n{command.help}\n\n    fortifai {name} {usage}\n\n" + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Text as a cell of a table: neither a link nor the end of the cell."""
    return text.replace("[", "\\[").replace("|", "\\|")


def measures() -> dict[str, tuple[Measure, ...]]:
    """The measures of each kind of data."""
    return {
        title: configuration.experiment_type(family).built_in_measures()
        for family, title in EXPERIMENTS.items()
    }


def measures_page() -> str:
    """What each measure says of itself."""
    parts = [
        "# Measures by name\n\nFrom their metadata, as the report and `time_to_failure` read it. "
        "Formulas and sources: [measures](../measures.md).",
    ]
    for title, found in measures().items():
        rows = ["| measure | what | unit | better | figure |", "| --- | --- | --- | --- | --- |"]
        for m in found:
            better = "" if m.direction == "none" else m.direction
            what = _escaped(f"{m.title}. {m.caption}")
            rows.append(f"| `{m.name}` | {what} | {m.unit} | {better} | {m.panel} |")
        parts.append(f"## {title}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def presets_page() -> str:
    """Every preset, whole."""
    folder = configuration.resources.files("fortifai.presets")
    parts = [
        "# Presets\n\n`fortifai run NAME` runs one, `fortifai show NAME` prints every default."
    ]
    for name in configuration.preset_names():
        text = folder.joinpath(f"{name}.yaml").read_text("utf-8")
        parts.append(f"## {name}\n\n```yaml\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"
