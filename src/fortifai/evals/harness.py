"""lm-evaluation-harness on a model in memory: its prompts, its metrics, its standard errors.

Tasks are evaluated by the harness's own `evaluate`. What is ours is how sequences are read: sorted
over all tasks, and what several answers have in common only once. This module imports the harness,
so it is imported where a benchmark is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from fortifai.data.tokens import SpecialTokens, beginning, check_template, put_before
from fortifai.errors import InputError
from fortifai.evals.harness_process import as_its_command, replaced
from fortifai.evals.harness_tasks import Built, foreign

FEWSHOT_SEED = 1234
"""Of the few-shot examples, as the harness's command has it."""

BOOTSTRAPS = 100_000
"""Its draws for the standard errors of metrics that are no means."""

LOGITS_BYTES = 256 * 2**20
"""Memory for the logits of one batch, where all of them are made."""

Tick = Callable[[int, int], None]
Encoded = tuple[list[int], int]
LogProb = Callable[[Sequence[Encoded], Tick], list[float]]
"""Token ids, and how many at their end are scored, to the sum of their log p, in nats."""


# the harness has no types, so its class is Any
class InMemory(HFLM):  # type: ignore[misc]
    """The harness's own model class on a model in memory, read in our order.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer; a copy is used, since the harness may give it a pad token.
        special: Its special tokens.
        log_prob: Sums of log p of token sequences.
        rows: How many sequences of so many tokens are written at a time.
        tick: Told how many of how many sequences are done.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        special: SpecialTokens,
        log_prob: LogProb,
        rows: Callable[[int], int],
        tick: Tick,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=beginning(copy.deepcopy(tokenizer), special),
            batch_size=1,
            # None: what the harness does by default, which is what the tokenizer does
            add_bos_token=None if special.bos == put_before(tokenizer) else special.bos is not None,
            # None: the harness's own choice
            prefix_token_id=special.bos,
        )
        self._log_prob, self._rows, self._tick = log_prob, rows, tick
        self._known: dict[tuple[str, bool | None], list[int]] = {}
        self._done = self._total = 0
        self.sums_suffice = False
        """No metric asks whether an answer is what greedy decoding would have written."""

    def encode(self, requests: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) tokens of each request, as the harness encodes them."""
        out: list[tuple[list[int], list[int]]] = []

        def keep(encoded: Any, **_: Any) -> list[tuple[float, bool]]:
            out.extend((context, continuation) for _, context, continuation in encoded)
            return []

        with replaced(self, "_loglikelihood_tokens", keep):
            self.loglikelihood(requests)
        return out

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The tokens of a text, from those that were encoded together where they were."""
        known = self._known.get((string, add_special_tokens))
        if known is not None and left_truncate_len is None:
            return known
        return cast(
            list[int], super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        )

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods; see the harness."""
        self._encode_together(requests)
        try:
            return cast(
                list[tuple[float, bool]], super().loglikelihood(list(requests), disable_tqdm=True)
            )
        finally:
            self._known.clear()

    def _encode_together(self, requests: Sequence[Any]) -> None:
        """Encode the texts that the harness will ask for one by one: many times faster."""
        pairs = [request.args for request in requests]
        alone = {c for context, c in pairs if context == ""}
        whole = {context + c for context, c in pairs if context}
        whole |= {context.rstrip() for context, _ in pairs if context}
        # a text that begins with the token's own spelling is encoded otherwise: left to it
        begin = self.tokenizer.decode(self.prefix_token_id)
        for texts, special in (
            ([t for t in sorted(whole) if not t.startswith(begin)], None),
            (sorted(alone), False),
        ):
            if texts:
                asked = self.add_bos_token if special is None else special
                how = {} if asked is None else {"add_special_tokens": asked}
                ids = self.tokenizer(texts, return_attention_mask=False, **how).input_ids
                self._known |= {(t, special): i for t, i in zip(texts, ids, strict=True)}

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        # in half precision the harness rounds each log p, and rounding may decide an answer
        if self.sums_suffice and self.model.dtype == torch.float32:
            longest = self.max_length + 1  # the last token is only predicted, never read
            encoded = [((head + tail)[-longest:], len(tail)) for _, head, tail in requests]
            sums = self._log_prob(encoded, self._tick)
            if np.isnan(sums).any():
                raise InputError(
                    "the model gives no log-probability (NaN) for a benchmark; its weights are "
                    "not finite, so load or train another"
                )
            return [(total, False) for total in sums]
        width = max((len(head) + len(tail) for _, head, tail in requests), default=1)
        each = 4 * min(width, self.max_length) * len(self.tokenizer)
        self.batch_size_per_gpu = max(1, min(64, LOGITS_BYTES // each))
        self._done, self._total = 0, len(requests)
        return cast(
            list[tuple[float, bool]],
            super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs),
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Texts written after prompts; see the harness."""
        self.batch_size_per_gpu = self._rows(self.max_length)
        self._done, self._total = 0, len(requests)
        return cast(list[str], super().generate_until(list(requests), disable_tqdm=True))

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *args, **kwargs)
        self._advance(len(inps))
        return logits

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        written = super()._model_generate(context, *args, **kwargs)
        self._advance(len(context))
        return written

    def _advance(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        self._tick(self._done, self._total)


def check(built: Built, lm: InMemory) -> list[str]:
    """Whether a model of this length and tokenizer can be asked; returns what is cut.

    Raises:
        InputError: An item is not what the task needs, an answer is longer than the model reads,
            or there is no room to write one.
    """
    benchmark, name = built.benchmark, built.benchmark.name
    if benchmark.apply_chat_template:
        arguments = benchmark.chat_template_args
        check_template(lm.tokenizer, arguments, key=f"benchmarks.{name}.apply_chat_template")
    sizes: list[int] = []
    with as_its_command():
        for task in built.tasks.values():
            try:
                _requests(task, built, lm)
            except Exception as error:
                raise foreign(benchmark, task.config.task, error) from error
        asked = [request for task in built.tasks.values() for request in task.instances]
        for context, answer in lm.encode([r for r in asked if r.request_type == "loglikelihood"]):
            if not answer or len(answer) > lm.max_length:
                raise InputError(
                    f"benchmarks.{name}: an answer has {len(answer)} tokens and the model reads "
                    f"{lm.max_length} at most; use a model with more positions"
                )
            sizes.append(len(context) + len(answer) - 1)
        for request in asked:
            if request.request_type == "generate_until":
                prompt, how = request.args
                new = normalize_gen_kwargs(how, lm.max_gen_toks)["max_gen_toks"]
                if new >= lm.max_length:
                    raise InputError(
                        f"benchmarks.{name}: an answer is up to {new} tokens long and the model "
                        f"has {lm.max_length} positions, prompt included; set max_gen_toks lower "
                        "or use a model with more positions"
                    )
                sizes.append(len(lm.tok_encode(prompt)) + new)
    cut = sum(size > lm.max_length for size in sizes)
    if not cut:
        return []
    return [
        f"benchmark {name}: {cut:,} of {len(sizes):,} prompts with their answers are longer than "
        f"the model's {lm.max_length} positions; they lose their beginning, as in "
        "lm-evaluation-harness"
    ]


def _requests(task: Any, built: Built, lm: InMemory) -> None:
    chat = built.benchmark.apply_chat_template
    lm.chat_template_args = dict(built.benchmark.chat_template_args)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(
        limit=built.benchmark.limit,
        rank=0,
        world_size=1,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template if chat else None,
    )


def evaluate(built: Built, lm: InMemory) -> dict[str, Any]:
    """The harness's results, with one record for each item, as its command would give them."""
    lm.sums_suffice = all(_sums_suffice(task) for task in built.tasks.values())
    lm.chat_template_args = dict(built.benchmark.chat_template_args)
    with as_its_command():
        for task in built.tasks.values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # drawn from in each evaluation
        results = evaluator.evaluate(
            lm,
            {"tasks": dict(built.tasks), "groups": dict(built.groups)},
            limit=built.benchmark.limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            apply_chat_template=built.benchmark.apply_chat_template,
            fewshot_as_multiturn=True,
        )
    return cast(dict[str, Any], results)


def _sums_suffice(task: Any) -> bool:
    metrics = {m.get("metric") for m in task.config.metric_list or ()}
    own = task.config.process_results is not None
    return task.config.output_type == "multiple_choice" and not own and "exact_match" not in metrics
