"""What the writer `llm` asks of a model, and the shape of the answer."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from fortifai.questions.passages import Paragraph

PROMPT = """\
You write test items that measure how well a language model has kept the facts of a text.

From the paragraph that follows, write up to {count} items. Each item has
- context: one sentence that names its subject in full and says nothing of the answer;
- sentence_true: one sentence that goes on from the context and states one fact of the paragraph;
- sentence_false: the same sentence with that fact replaced by a wrong one.

Rules
- Use your own words; do not copy the paragraph's sentences.
- Each item asks for another fact: a name, place, date, number, cause or outcome.
- The wrong fact is of the same kind, as plausible and about as long, and stands nowhere in the
  paragraph. Somebody who has not read the paragraph can only guess.
- Never make the false sentence with "not" or another negation, and never by leaving words out.
- The two sentences are alike in every other word. Of all items, half have the longer true sentence.
- Write fewer items if the paragraph has fewer good facts, and none if it has none.
"""

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=400)]


class Draft(BaseModel):
    """One question as a model writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    context: _Text
    sentence_true: _Text
    sentence_false: _Text


class Answer(BaseModel):
    """What a model is to answer with; anything else is useless."""

    model_config = ConfigDict(extra="forbid", strict=True)
    questions: list[Draft]


_FIELDS = list(Draft.model_fields)
_DRAFT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in _FIELDS},
    "required": _FIELDS,
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": _DRAFT}},
    "required": ["questions"],
    "additionalProperties": False,
}
"""`Answer` for the endpoint, written out: many take only a part of JSON Schema, without lengths."""


_THOUGHT = r"think(?:ing)?|reasoning|thought"
_OPENS = re.compile(rf"\s*<(?:{_THOUGHT})>")
_CLOSES = re.compile(rf"</(?:{_THOUGHT})>")
_BEGINS = re.compile(r"\{\s*\"questions\"\s*:")


def read_answer(text: str) -> Answer:
    """The answer in what a model wrote: all of it, or the one such object behind its reasoning.

    Many put it between fences, after a sentence, or after ``<think>...</think>``, and templates
    may have written the opening tag themselves. Two different answers are none.

    Raises:
        ValueError: There is none, with what is wrong in a few words.
    """
    try:
        return Answer.model_validate_json(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    closed = [found.end() for found in _CLOSES.finditer(text)]
    if not closed and _OPENS.match(text):
        raise ValueError("the reasoning has no end")
    told = text[closed[-1] :] if closed else text
    answers: list[Answer] = []
    for found in _BEGINS.finditer(told):
        try:
            _, end = json.JSONDecoder().raw_decode(told, found.start())
            answer = Answer.model_validate_json(told[found.start() : end])
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
        except (ValueError, RecursionError):
            pass  # such as what it quotes of the task; the first reason stands
        else:
            answers += [answer] if answer not in answers else []
    if len(answers) > 1:
        raise ValueError(f"{len(answers)} different answers")
    if not answers:
        raise ValueError(reason)
    return answers[0]


def messages(paragraph: Paragraph, count: int) -> list[dict[str, str]]:
    """What a model is asked on one paragraph.

    Args:
        paragraph: The paragraph; its text goes to the model as it is.
        count: Most questions.
    """
    title = f"Title: {paragraph.title.strip()}\n\n" if paragraph.title.strip() else ""
    return [
        {"role": "system", "content": PROMPT.format(count=count)},
        {"role": "user", "content": f"{title}{paragraph.text}"},
    ]
