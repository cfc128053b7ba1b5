"""What a model reads: its special tokens, and texts as token ids.

Every sequence that a model is given begins with its beginning-of-text token (bos) where the model
was trained so. Texts are text: a control token that is spelled out in one is read as the characters
that it is made of.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import processors

from fortifai.errors import InputError

Bos = Literal["auto", "always", "never"]
Ids = list[int]
Encoded = tuple[Ids, int]
"""Token ids, and how many at their end are to be scored."""

TRAINED_WITH_BOS = ("gemma",)
"""Beginnings of model types that were trained behind a bos, whatever their tokenizer puts.

Gemma 4's tokenizers declare one and leave it to the chat template (Gemma: 2403.08295, section 3).
"""

END_ATTRIBUTES = ("eos_token", "eot_token", "eom_token", "end_of_turn_token")
"""Names under which tokenizers declare what ends a text or a turn."""

# texts a call: enough for the tokenizer's threads, few enough that its lists of offsets, some
# hundred bytes a token, never stand in memory for a whole corpus
_BATCH = 512


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The tokens of a model that are no text.

    Attributes:
        bos: Stands before every sequence, is never scored, never a target and never written; None
            where the model was trained without.
        end: Ends a document.
        ends: All that end a text or a turn of a conversation, `end` among them.
        absent: Ids for which the model has logits and the tokenizer no token (a padded vocabulary).
    """

    bos: int | None
    end: int
    ends: frozenset[int] = frozenset()
    absent: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """What stands before the first token of a text: bos, or else the end of another text."""
        return self.end if self.bos is None else self.bos

    @property
    def never_written(self) -> tuple[int, ...]:
        """Ids that no decoding may choose: those without a token, and bos unless it is an end."""
        bos = () if self.bos is None or self.bos in self.ends else (self.bos,)
        return (*self.absent, *bos)

    @property
    def front(self) -> Ids:
        """The ids that stand before every sequence: bos, or none."""
        return [] if self.bos is None else [self.bos]


def special_tokens(
    tokenizer: Any, config: Any, generation_config: Any = None, *, bos: Bos = "auto"
) -> SpecialTokens:
    """The special tokens of a model.

    `bos` ``auto``: what the tokenizer puts before a text by itself; else the bos that it declares,
    if the model's family was trained so (`TRAINED_WITH_BOS`); else none. ``always``: the declared
    one, whatever the tokenizer does; ``never``: none.

    Args:
        tokenizer: A fast tokenizer.
        config: The model's configuration; one of several parts is read by its text part.
        generation_config: What lists further ends, one id or several; None for none.
        bos: Whether sequences begin with bos.

    Raises:
        InputError: The tokenizer has neither an eos nor a bos token, `bos` is ``always`` and there
            is none, or the model has no row for it.
    """
    text = config.get_text_config(decoder=True)
    rows = int(text.vocab_size)
    begin, end = _begin(tokenizer, text, bos), document_end(tokenizer)
    for token in (begin, end):
        if token is not None and token >= rows:
            raise InputError(
                f"the tokenizer's {tokenizer.convert_ids_to_tokens(token)!r} has the id {token} "
                f"and the model rows for {rows:,} ids; use the tokenizer that belongs to the model"
            )
    listed = getattr(generation_config, "eos_token_id", None)
    ends = {end, *_declared_ends(tokenizer), *_several(listed)}
    known = set(tokenizer.get_vocab().values())
    absent = tuple(i for i in range(rows) if i not in known)
    return SpecialTokens(begin, end, frozenset(ends), absent)


def document_end(tokenizer: Any) -> int:
    """The token that stands behind every document: eos, or bos where there is no eos.

    Raises:
        InputError: The tokenizer has neither.
    """
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise InputError(
        f"the tokenizer {type(tokenizer).__name__} has neither an eos nor a bos token; "
        "use a model whose tokenizer has one"
    )


def _begin(tokenizer: Any, text_config: Any, bos: Bos) -> int | None:
    declared = tokenizer.bos_token_id
    if bos == "never":
        return None
    if bos == "always":
        if declared is None:
            raise InputError(
                f"bos is 'always' and the tokenizer {type(tokenizer).__name__} declares no "
                "beginning-of-text token; use 'auto' or 'never'"
            )
        return int(declared)
    put = put_before(tokenizer)
    if put is not None:
        return put
    trained = str(text_config.model_type).startswith(TRAINED_WITH_BOS)
    return int(declared) if trained and declared is not None else None


def put_before(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before a text by itself, if it does."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    own = tokenizer("a", add_special_tokens=True).input_ids
    before = own[: len(own) - len(plain)]
    return int(own[0]) if before and own[0] != plain[0] else None


def _declared_ends(tokenizer: Any) -> list[int]:
    unknown = tokenizer.unk_token_id
    out = []
    for name in END_ATTRIBUTES:
        # extra tokens are attributes in some versions, and arguments of the tokenizer in all
        token = getattr(tokenizer, name, None) or tokenizer.init_kwargs.get(name)
        if token is None:
            continue
        found = tokenizer.convert_tokens_to_ids(str(token))
        if found is not None and found != unknown:
            out.append(int(found))
    return out


def _several(ids: int | Sequence[int] | None) -> list[int]:
    """What generation configurations list as one id or as several."""
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else [int(i) for i in ids]


def beginning(tokenizer: Any, special: SpecialTokens) -> Any:
    """The tokenizer, made to put bos before a text by itself where the model reads one.

    Args:
        tokenizer: A fast tokenizer; changed.
        special: The model's special tokens.
    """
    if special.bos is not None and put_before(tokenizer) != special.bos:
        spelled = tokenizer.convert_ids_to_tokens(special.bos)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[spelled, "$A"], special_tokens=[(spelled, special.bos)]
        )
    return tokenizer


def check_template(tokenizer: Any, arguments: Mapping[str, Any], *, key: str) -> None:
    """Refuse a missing chat template, and arguments that it would ignore in silence.

    Args:
        tokenizer: The model's.
        arguments: What the template is told, such as ``{"enable_thinking": False}``.
        key: What asks for the template, in messages.

    Raises:
        InputError: There is no template, or it uses no argument of this name.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{key}: the model's tokenizer has no chat template; leave it out or use a model that "
            "was tuned to chat"
        )
    template = tokenizer.get_chat_template()
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(
                f"{key}: chat_template_args names {name!r}, which the model's chat template does "
                "not use; leave it out"
            )


def chat_ids(
    tokenizer: Any,
    special: SpecialTokens,
    turns: Sequence[tuple[str, str]],
    arguments: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation, up to where the model answers.

    Args:
        tokenizer: The model's, with a chat template.
        special: Its special tokens.
        turns: Role and content of each turn, the last of them the user's.
        arguments: What the template is told.
    """
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        return_dict=False,
        # what a question spells is text; only the template writes control tokens
        sanitize_control_tokens=True,
        **(arguments or {}),
    )
    return ids if ids[:1] == special.front else special.front + ids


# --- texts ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Text:
    """A text as tokens.

    Attributes:
        ids: (n,) int32 token ids, none of them a control token's.
        begins: (n,) int32 character where each of them begins.
    """

    ids: NDArray[np.int32]
    begins: NDArray[np.int32]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Text]:
    """Texts as token ids, without any special token.

    A control token that a text spells out is read as ordinary characters, so decoding gives the
    text back and no text holds an end, a beginning or a turn.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts; one may be longer than the model reads.

    Raises:
        InputError: The tokenizer knows the spelling of a control token as a word of its own.
    """
    control = _control(tokenizer)
    out = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            list(texts[start : start + _BATCH]),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for ids, spans in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            found = Text(
                np.array(ids, dtype=np.int32),
                np.array([first for first, _ in spans], dtype=np.int32),
            )
            told = control[np.isin(control, found.ids)]
            if len(told):
                spelled = tokenizer.convert_ids_to_tokens(int(told[0]))
                raise InputError(
                    f"a text spells out the control token {spelled!r}, which this model's "
                    "tokenizer cannot read as text; take it out of the text"
                )
            out.append(found)
    return out


def _control(tokenizer: Any) -> NDArray[np.int64]:
    """Ids of the control tokens; a token that stands for unknown text is none."""
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return np.array(sorted(special - {tokenizer.unk_token_id}), dtype=np.int64)


def check_known(tokenizer: Any, ids: NDArray[np.integer], rows: int) -> None:
    """Refuse ids that the model has no row for; some tokenizers have a token more than the model.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids of any shape.
        rows: How many ids the model knows.

    Raises:
        InputError: There is such an id; names its token.
    """
    if ids.size and int(ids.max()) >= rows:
        token = int(ids.max())
        raise InputError(
            f"the text has the token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}) and "
            f"the model rows for {rows:,} ids; take it out of the text, or use the tokenizer that "
            "belongs to the model"
        )


# --- contexts and what follows them -----------------------------------------------------------

_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3000, 0x30FF),  # CJK punctuation, hiragana, katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # CJK ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),  # full-width forms
    (0x20000, 0x3FFFF),  # further ideographs
)
"""Blocks of scripts that put no space between words."""


def spaceless(text: str) -> bool:
    """Whether any character of a text is of a script that puts no space between words."""
    return any(first <= ord(c) <= last for c in text for first, last in _SPACELESS)


def gap(context: str, continuation: str) -> str:
    """What stands between a context and its continuation: a space, or nothing.

    A space stands there where the texts have one, and where both are of a script that parts words
    by spaces. A continuation in another script than its context (a Chinese name in an English
    sentence) is parted by a space, too.
    """
    start, end = context.rstrip(), continuation.lstrip()
    if not start:
        return ""
    if start != context or end != continuation:
        return " "
    joined = spaceless(start[-1:]) or (spaceless(end[:1]) and spaceless(start))
    return "" if joined else " "


def encode_pairs(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    special: SpecialTokens,
    *,
    limit: int,
) -> list[Encoded]:
    """Token ids of each context with its continuation, and the number of tokens of the latter.

    The continuation's ids are those of the whole text minus those of the context. Where the whole
    does not begin with the context's ids (no word ends there), the two are encoded apart, so that
    the true and the false continuation of a question stand after the very same context. An empty
    context is bos alone, or the end of another text. A context too long for the model loses its
    oldest tokens.

    Args:
        tokenizer: The model's.
        pairs: (context, continuation) texts; white space around the boundary is one space, and
            `gap` says what stands there where the texts have none.
        special: The model's special tokens.
        limit: Longest sequence the model reads, in tokens.

    Raises:
        InputError: A continuation is empty, or by itself longer than the model reads.
    """
    starts = [context.rstrip() for context, _ in pairs]
    ends = [continuation.strip() for _, continuation in pairs]
    gaps = [gap(*pair) for pair in pairs]
    for start, end in zip(starts, ends, strict=True):
        if not end:
            raise InputError(
                f"the continuation of {start[:60]!r} is empty; every question needs a true and a "
                "false one"
            )
    heads = _each(tokenizer, starts)
    wholes = _each(tokenizer, [a + g + b for a, g, b in zip(starts, gaps, ends, strict=True)])
    tails = [_after(head, whole) for head, whole in zip(heads, wholes, strict=True)]
    lone = [g + b for g, b, tail in zip(gaps, ends, tails, strict=True) if tail is None]
    apart = iter(inside(tokenizer, lone))
    out = []
    for start, end, head, tail in zip(starts, ends, heads, tails, strict=True):
        ids = next(apart) if tail is None else tail
        if not ids:
            raise InputError(
                f"the continuation {end[:60]!r} of {start[:60]!r} adds no token; every question "
                "needs a true and a false one"
            )
        front = special.front if head else [special.first]
        room = limit - len(ids) - len(front)
        if room < (1 if head else 0):
            raise InputError(
                f"the continuation {end[:60]!r} has {len(ids)} tokens, but the model reads "
                f"{limit} at most, context included; shorten it or use a model with more positions"
            )
        out.append((front + head[max(0, len(head) - room) :] + ids, len(ids)))
    return out


def _each(tokenizer: Any, texts: Iterable[str]) -> list[Ids]:
    """Ids of texts, each different one encoded once: a question's context comes twice."""
    wanted = list(texts)
    different = list(dict.fromkeys(wanted))
    known = dict(zip(different, encode(tokenizer, different), strict=True))
    return [known[text].ids.tolist() for text in wanted]


def _after(head: Ids, whole: Ids) -> Ids | None:
    """What follows `head` in `whole`; None where that does not begin with it."""
    return whole[len(head) :] if whole[: len(head)] == head else None


_LINE = "\n"


def inside(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Ids of texts as they stand inside another, after a line feed.

    Some tokenizers put a mark for a space before every text, which belongs to no boundary inside.
    """
    line = _each(tokenizer, [_LINE])[0]
    behind = [_after(line, ids) for ids in _each(tokenizer, [_LINE + text for text in texts])]
    alone = iter(_each(tokenizer, [t for t, ids in zip(texts, behind, strict=True) if not ids]))
    return [ids or next(alone) for ids in behind]
