"""`CollapseMonitor`: what a model writes while it trains, in the logs of transformers' Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Trainer,
    TrainerCallback,
)

from fortifai.errors import InputError
from fortifai.stats.information import entropy
from fortifai.stats.scores import Words, mixed, scored_types

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

# by measure: the direction that is worse, and a difference below which nothing is said, since
# halves that agree by chance (no repetition in either) would make a floor of 0; a third of the
# levels of the audit, rounded, which are conventions too
_JUDGED = {
    "entropy": (-1, 0.1),
    "distinct_2": (-1, 0.03),
    "distinct_3": (-1, 0.03),
    "repetition": (1, 0.03),
    "confidence_gap": (1, 0.05),
}
_SPLITS = 100


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a model wrote at one moment, and how sure it was.

    Attributes:
        written: Of each sample its token ids, without the end of the text.
        own: Of each sample the probability of each of its tokens, at temperature 1.
        held_out: Of each held-out passage the probability of each of its tokens.
    """

    written: list[Ids]
    own: list[Floats]
    held_out: list[Floats]

    def measures(self) -> dict[str, float]:
        """The measures that are logged; NaN where nothing, or too little, was written.

        - ``entropy``: -sum p log p of all tokens, nats.
        - ``distinct_2``, ``distinct_3``: different n-grams over all, those within samples
          (1510.03055), so that a sample that says what another says counts.
        - ``repetition``: share of a sample's 4-grams that begin within 128 tokens of where they
          began before, mean of samples.
        - ``confidence_own``, ``confidence_held_out``: mean probability of a token, and
          ``confidence_gap``, the first less the second.
        - ``tokens``: of a sample, mean.
        """
        lengths = np.array([len(row) for row in self.written])
        words = Words(
            mixed(np.concatenate(self.written).astype(np.uint64)),
            lengths,
            np.zeros(len(lengths), dtype=bool),
        )
        out = {"entropy": float("nan")}
        if lengths.sum():
            out["entropy"] = entropy(np.unique(words.hashes, return_counts=True)[1])
        for n in (2, 3):
            grams = words.grams(n)[0]
            out[f"distinct_{n}"] = len(np.unique(grams)) / len(grams) if len(grams) else np.nan
        out["repetition"] = _mean(scored_types(words)["repetition"])
        out["confidence_own"] = _mean(np.concatenate(self.own))
        out["confidence_held_out"] = _mean(np.concatenate(self.held_out))
        out["confidence_gap"] = out["confidence_own"] - out["confidence_held_out"]
        return out | {"tokens": float(lengths.mean())}

    def cut(self, other: Reading) -> Reading:
        """Each sample no longer than the other's, on whose length the measures depend."""
        sizes = [len(row) for row in other.written]
        pairs = zip(self.written, self.own, sizes, strict=True)
        written, own = zip(*((ids[:n], p[:n]) for ids, p, n in pairs), strict=True)
        return Reading(list(written), list(own), self.held_out)

    def floors(self) -> dict[str, float]:
        """The 95th percentile of what random halves of it differ by, or the least, if that is more.

        Halves are half as large as a reading, so they differ more than readings do by chance:
        by about 1.4 times, which makes up for looking many times.
        """
        rng = np.random.default_rng(0)
        gaps: dict[str, list[float]] = {name: [] for name in _JUDGED}
        for _ in range(_SPLITS):
            one, two = (part.measures() for part in self._halves(rng))
            for name, found in gaps.items():
                found.append(abs(one[name] - two[name]))
        return {
            name: max(least, *np.nanquantile([*gaps[name], 0.0], [0.95]))
            for name, (_, least) in _JUDGED.items()
        }

    def _halves(self, rng: np.random.Generator) -> Iterator[Reading]:
        rows, passages = (rng.permutation(len(x)) for x in (self.written, self.held_out))
        for side in (0, 1):
            mine = rows[side::2]
            yield Reading(
                [self.written[i] for i in mine],
                [self.own[i] for i in mine],
                [self.held_out[i] for i in passages[side::2]],
            )


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


class CollapseMonitor(TrainerCallback):
    """Samples from a model while it trains, and logs how diverse that is and how sure it is of it.

        CollapseMonitor(prompts, every=1000).attach(trainer)

    Continues the prompts at temperature 1, and logs the measures of `Reading.measures`, as
    ``collapse_entropy`` and so on, through the trainer, so to all services of `report_to`;
    ``collapse_cost`` is the share of the training time that all this took, and is printed at the
    end. It warns where a measure is worse than in the first reading by more than its noise floor
    (`Reading.floors`), both cut to equally many tokens, sample by sample. It reads before the first
    step (or after step `first`), every so many steps, and after the last.

    Training is what it would be without: draws come from a generator of its own, and each module
    is put back into its mode. On several processes the first one does it all.

    Args:
        prompts: Texts that the model continues, as they stand; the tokenizer puts the beginning of
            a text before them where it does so.
        held_out: Texts that the model does not train on, for its confidence; the first 32 pieces
            of `2 * tokens` tokens, evenly spread, are read. None: the prompts.
        every: Steps of the optimizer between readings.
        first: Step of the first reading. In training from scratch, one after which the model
            writes something: the diversity of noise can only fall.
        samples: Continuations in a reading, shared out over the prompts in turn.
        tokens: Of a continuation, at most.
        seed: Of the draws; the same in each reading.

    Attributes:
        readings: By step, what was read.
        texts: Of the last reading, the samples as text.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        held_out: Sequence[str] | None = None,
        *,
        every: int = 1000,
        first: int = 0,
        samples: int = 32,
        tokens: int = 64,
        seed: int = 0,
    ) -> None:
        for what, texts in (("prompts", prompts), ("held_out", held_out)):
            if isinstance(texts, str) or not all(isinstance(x, str) for x in texts or ()):
                raise InputError(f"{what} must be a list of texts; give such as ['The town of']")
        if not prompts:
            raise InputError("no prompts, so there is nothing to continue; give a few texts")
        least = {"every": 1, "first": 0, "samples": max(8, len(prompts)), "tokens": 8}
        given = {"every": every, "first": first, "samples": samples, "tokens": tokens}
        for name, value in given.items():
            if not isinstance(value, int) or value < least[name]:
                raise InputError(
                    f"{name} is {value!r}; give a whole number of at least {least[name]}"
                )
        self.prompts, self.held_out = list(prompts), list(prompts if held_out is None else held_out)
        self.every, self.first, self.seed = every, first, seed
        self.samples, self.tokens = samples, tokens
        self.readings: dict[int, Reading] = {}
        self.texts: list[str] = []
        self._trainer: Trainer | None = None
        self._outside: set[str] = set()
        self._spent = self._began = 0.0

    def attach(self, trainer: Trainer) -> CollapseMonitor:
        """Add it to a trainer, through which it logs: transformers tells callbacks of none.

        Raises:
            InputError: The trainer has no tokenizer, or shards its model; a prompt has no tokens,
                or too many for the model; the held-out text is too short.
        """
        self._tokenizer = _tokenizer_of(trainer)
        model: Any = trainer.model
        config = model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or float("inf")
        self._prompts = []
        for text in self.prompts:
            front, ids = _tokens(self._tokenizer, text)
            self._prompts.append(front + ids)
        for text, ids in zip(self.prompts, self._prompts, strict=True):
            if not 0 < len(ids) <= limit - self.tokens:
                raise InputError(
                    f"the prompt {text[:40]!r} has {len(ids):,} tokens; give one of 1 to "
                    f"{limit - self.tokens:,}, which leaves room for {self.tokens} more"
                )
        size = int(min(2 * self.tokens, limit))
        self._passages = _passages(self._tokenizer, self.held_out, size)
        known = sum(len(ids) - 1 for ids in self._passages)
        if known < self.tokens or len(self._passages) < 2:
            raise InputError(
                f"the held-out text has {len(self._passages)} passages with {known:,} tokens that "
                f"something stands before; give held_out=[...] with at least 2 and {self.tokens}"
            )
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock, and reads where the first reading is before the first step."""
        if self._trainer is None:
            raise InputError(
                "CollapseMonitor logs through its trainer and knows of none; leave it out of "
                "callbacks and call monitor.attach(trainer)"
            )
        self.readings, self._outside = {}, set()
        self._spent, self._began = 0.0, time.perf_counter()
        if self.first <= state.global_step:
            self._read(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reads where it is time."""
        step = state.global_step
        due = (step - self.first) % self.every == 0 or step >= state.max_steps
        if step >= self.first and due:
            self._read(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Says what it has cost."""
        if self.readings:
            print(  # noqa: T201 # as Trainer's own logs are
                f"CollapseMonitor: {len(self.readings)} readings took {self._spent:.1f} s, "
                f"{100 * self._cost():.1f} % of the training time"
            )

    def _cost(self) -> float:
        return self._spent / (time.perf_counter() - self._began)

    def _read(self, state: Any, control: Any) -> None:
        if not state.is_world_process_zero:
            return
        assert self._trainer is not None  # as on_train_begin has seen
        model: Any = self._trainer.model
        if model.device.type != "cpu":
            torch.accelerator.synchronize()  # what training has queued is not this one's time
        start = time.perf_counter()
        with torch.no_grad(), _evaluating(model):
            written, own = self._written(model)
            held_out = _probabilities(
                model, self._passages, self._trainer.args.per_device_eval_batch_size
            )
        reading = Reading(written, own, held_out)
        self.texts = self._tokenizer.batch_decode([ids.tolist() for ids in written])
        if self.readings:
            self._judge(reading, state.global_step)
        self.readings[state.global_step] = reading
        self._spent += time.perf_counter() - start
        found = {k: v for k, v in reading.measures().items() if not np.isnan(v)}
        due = control.should_log  # which Trainer takes back when it logs
        logs = {f"collapse_{k}": v for k, v in (found | {"cost": self._cost()}).items()}
        # not that of a subclass: TRL's empties what it has counted for the next training log
        Trainer.log(self._trainer, logs)
        control.should_log = due

    def _judge(self, reading: Reading, step: int) -> None:
        start, before = next(iter(self.readings.items()))
        before = before.cut(reading)
        then, now, floors = before.measures(), reading.cut(before).measures(), before.floors()
        outside = {
            name
            for name, (sign, _) in _JUDGED.items()
            if sign * (now[name] - then[name]) > floors[name]
        }
        for name in sorted(outside - self._outside):
            warnings.warn(
                f"step {step}: {name} of what the model writes is {now[name]:.3f}, at step "
                f"{start} it was {then[name]:.3f}, and the noise floor is {floors[name]:.3f}; read "
                "the monitor's texts, and audit the model",
                stacklevel=2,
            )
        self._outside = outside

    def _written(self, model: Any) -> tuple[list[Ids], list[Floats]]:
        """Samples, and the probability of each of their tokens."""
        prompts = [self._prompts[i % len(self._prompts)] for i in range(self.samples)]
        width = max(map(len, prompts))
        ends = _ends(model, self._tokenizer)
        ids = torch.full((len(prompts), width), ends[0] if ends else 0)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        draw = _Draw(torch.Generator(model.device).manual_seed(self.seed))
        # greedy among what _Draw leaves, which is one token; what a model's own generation_config
        # would change is set
        config = GenerationConfig(
            **{"max_new_tokens": self.tokens, "min_new_tokens": 0, "do_sample": False},
            **{"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
            **{"use_cache": True, "cache_implementation": "dynamic", "disable_compile": True},
            **{"eos_token_id": ends or None, "pad_token_id": ends[0] if ends else 0},
        )
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([draw]),
        )[:, width:].cpu()
        ended = torch.isin(made, torch.tensor(ends)) if ends else torch.zeros_like(made).bool()
        sizes = torch.where(ended.any(1), ended.int().argmax(1), made.shape[1]).tolist()
        sure = torch.stack(draw.probabilities, 1).cpu().double()
        rows = list(zip(made, sure, sizes, strict=True))
        return [m[:n].numpy() for m, _, n in rows], [p[:n].numpy() for _, p, n in rows]


class _Draw(LogitsProcessor):
    """Draws at temperature 1 from a generator of its own, not from the one that training uses."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that leave only what was drawn."""
        p = scores.float().softmax(-1)
        drawn = torch.multinomial(p, 1, generator=self.generator)
        self.probabilities.append(p.gather(1, drawn)[:, 0])
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation, and afterwards each in the mode it was in: some may be frozen."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _tokenizer_of(trainer: Any) -> Any:
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(
        trainer, "is_deepspeed_enabled", False
    ):
        raise InputError(
            "the trainer shards its model, so no process has all of it to sample from; monitor "
            "runs on one process or with DDP"
        )
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if tokenizer is None:
        raise InputError(
            "the trainer has no tokenizer to read the prompts with; give it "
            "processing_class=tokenizer"
        )
    return tokenizer


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and the text; not what it puts behind it."""
    ids = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    room = range(len(ids) - len(bare) + 1)
    return ids[: next((k for k in room if ids[k : k + len(bare)] == bare), 0)], bare


def _passages(tokenizer: Any, texts: Sequence[str], size: int) -> list[list[int]]:
    """At most 32 of the pieces of `size` tokens of all texts, those with two tokens or more."""
    pieces = []
    for text in texts:
        front, ids = _tokens(tokenizer, text)
        step = size - len(front)
        pieces += [front + ids[start : start + step] for start in range(0, len(ids), step)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    return [pieces[i] for i in np.linspace(0, len(pieces) - 1, min(32, len(pieces))).astype(int)]


def _probabilities(model: Any, passages: Sequence[list[int]], batch: int) -> list[Floats]:
    """Of each token but the first of each passage; so many passages at once."""
    found: list[Floats] = []
    for start in range(0, len(passages), batch):
        rows = [torch.tensor(row) for row in passages[start : start + batch]]
        # padded behind, where a causal model does not look
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        for row, all_logits in zip(rows, logits, strict=True):
            n = len(row) - 1
            p = all_logits[:n].float().softmax(-1)  # by row, for memory
            found.append(p.gather(1, row[1:, None].to(p.device))[:, 0].cpu().double().numpy())
    return found


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text, by the model and by its tokenizer."""
    own: Any = model.generation_config.eos_token_id
    found = [*(own if isinstance(own, Sequence) else [own]), tokenizer.eos_token_id]
    return sorted({int(x) for x in found if x is not None})
