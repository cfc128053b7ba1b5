"""Cures: what is done to a training set between its writing and the fit on it.

From generation 1 on, the units that a generation is about to train on (documents or blocks of text,
points, images) pass through the cures of its arm, one after the other. A cure selects units, some
of them more than once if it likes, or edits them. It knows where each unit comes from, and can ask
the model that wrote the newest of them how likely each is. What is rewritten next are the samples
as they were written: a cure decides what is learnt from, and losses do not add up over generations.

To add one, write a subclass of `Select` or `Edit` with a ``kind`` and one method, and name it in
`CURES`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from fortifai.errors import Diverged, RunFailed
from fortifai.lab.budget import Spent
from fortifai.lab.units import REAL, Indices, Samples, Units
from fortifai.options import Options
from fortifai.stats.entropy_rate import LEAST_WORDS, MOST_WORDS, entropy_rate, words_of


@dataclasses.dataclass(frozen=True)
class Context:
    """What a cure knows besides the units.

    Attributes:
        generation: The one that is about to be trained.
        seed: For what it draws at random.
        family: Makes the models; that of text also reads tokens as `text`.
        model: The model of the generation before; None for a cure without ``needs_model``.
        spent: Where models count what they are asked.
    """

    generation: int
    seed: int
    family: Any
    model: Any
    spent: Spent = dataclasses.field(default_factory=Spent)

    def base(self) -> Any:
        """The base model, which generation 0 starts from."""
        model = self.family.create("base", seed=self.seed)
        model.spent = self.spent
        return model

    def log_prob(self, samples: Samples) -> NDArray[np.floating]:
        """Log-probability in nats, one number for each token, pixel or point.

        Raises:
            RunFailed: The cure does not say that it needs the model, which then is not kept.
        """
        found: NDArray[np.floating] = self._asked().log_prob(samples)
        return found

    def mean_log_prob(self, units: Units, *, most: int | None = None) -> NDArray[np.float64]:
        """(n,) mean log-probability of each unit, float64.

        Args:
            units: Read one behind the other, as in training.
            most: Of text: have each unit read by itself, and so many of its tokens at most.
        """
        if most is not None:
            alone = [units[i][:most] for i in range(len(units))]
            means: NDArray[np.float64] = self._asked().document_log_prob(alone)
            return means
        found = self.log_prob(units.samples).astype(np.float64)
        each = found.reshape(len(found), -1).mean(axis=1)
        # not differences of a cumulative sum, which a single -inf would spoil behind it
        sums: NDArray[np.float64] = np.add.reduceat(each, units.edges[:-1])
        return sums / np.diff(units.edges)

    def _asked(self) -> Any:
        if self.model is None:
            raise RunFailed(
                "a cure asks for log-probabilities and does not say so; give its class "
                "needs_model = True"
            )
        return self.model


class Cure(Options):
    """A step between the writing of a training set and the fit on it.

    Attributes:
        kind: By which a YAML names it.
        unit: What it works on, such as ``document``; None: what the family trains on.
        domains: Kinds of data that it can work on.
        needs_model: Whether it asks the model of the generation before.
        needs_real: Whether it is of no use where nothing real is trained on.
        needs_base: Whether it asks the base model, which then must have learnt something.
        outside: Whether it knows what an arm's own models and data do not tell, as another model or
            the ledger does; it is then judged apart.
    """

    kind: str
    unit: str | None = None
    domains: ClassVar[tuple[str, ...]] = ("text", "images", "points")
    needs_model: ClassVar[bool] = False
    needs_real: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    outside: ClassVar[bool] = False

    @abstractmethod
    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """The units after it, and what the ledger says of it."""


class Select(Cure):
    """A cure that chooses units.

    Attributes:
        refill: Draw chosen units again, evenly, until as many samples are trained on as were read:
            updates as many as without the cure.
    """

    refill: bool = False

    @abstractmethod
    def select(self, units: Units, context: Context) -> Indices:
        """The numbers of the units to train on, in their order, repeats allowed."""

    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """See `Cure`."""
        which = self._numbers(self.select(units, context))
        if len(which) and not 0 <= which.min() <= which.max() < len(units):
            raise RunFailed(
                f"the cure {self.kind!r} selects units {which.min()} to {which.max()}, and there "
                f"are {len(units):,}, from 0; correct its select"
            )
        if len(which) == 0:
            raise Diverged(f"the cure {self.kind!r} keeps none of {len(units):,} units")
        if self.refill:
            which = drawn_evenly(which, units, int(units.edges[-1]), context.seed)
        kept = units.take(which)
        distinct = units.take(np.unique(which)).counts()
        row = {"read": units.counts(), "kept": distinct, "changed": {}}
        return kept, row | {"drawn_again": _less(kept.counts(), distinct)}

    def _numbers(self, found: Any) -> Indices:
        """What `select` returned; marks or scores would be taken for the numbers of other units."""
        which = np.asarray(found)
        if which.ndim != 1 or not (np.issubdtype(which.dtype, np.integer) or len(which) == 0):
            raise RunFailed(
                f"the select of the cure {self.kind!r} returned {which.dtype} of shape "
                f"{which.shape}; return the numbers of units, whole and in one row, such as "
                "numpy.flatnonzero(marks)"
            )
        return which.astype(np.int64)


class Edit(Cure):
    """A cure that changes units and leaves their number as it is."""

    @abstractmethod
    def edit(self, units: Units, context: Context) -> Units:
        """The same units, changed; in the same order, with the same origins."""

    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """See `Cure`."""
        # what changes is told by comparing, so the units themselves cannot be written to
        after = self.edit(units.read_only(), context)
        if fault := self._fault(units, after):
            raise RunFailed(f"the edit of the cure {self.kind!r} returned {fault}; correct it")
        changed = [i for i in range(len(units)) if not np.array_equal(units[i], after[i])]
        row = {"read": units.counts(), "kept": units.counts(), "drawn_again": {}}
        which = np.array(changed, dtype=np.int64)
        return after, row | {"changed": units.take(which).counts()}

    def _fault(self, units: Units, after: Any) -> str | None:
        if not isinstance(after, Units):
            return f"{type(after).__name__}, not Units, such as dataclasses.replace(units, ...)"
        if len(after) != len(units):
            return f"{len(after):,} of {len(units):,} units, whose number it must keep"
        for name in ("origins", "splits"):
            if not np.array_equal(getattr(units, name), getattr(after, name)):
                return f"units with other {name}, which the ledger tells"
        had, has = units.samples, after.samples
        if (has.dtype, has.shape[1:]) != (had.dtype, had.shape[1:]):
            return (
                f"samples of {has.dtype} and shape {has.shape}, where they are {had.dtype} and "
                f"{had.shape}"
            )
        return None


def drawn_evenly(of: Indices, units: Units, samples: float, seed: int) -> Indices:
    """Units of the numbers `of`, of at most `samples` samples: each as often, or once more."""
    lengths = np.diff(units.edges)[of]
    times, left = divmod(samples, lengths.sum())
    order = np.random.default_rng(seed).permutation(len(of))
    once_more = order[np.cumsum(lengths[order]) <= left]
    return np.sort(np.concatenate([np.repeat(of, int(times)), of[once_more]]))


def _less(counts: dict[str, int], taken: dict[str, int]) -> dict[str, int]:
    left = {name: n - taken.get(name, 0) for name, n in counts.items()}
    return {name: n for name, n in left.items() if n}


class Deduplicate(Select):
    """Each unit once: of units that are equal value by value, the first is kept."""

    kind: Literal["deduplicate"] = "deduplicate"

    def select(self, units: Units, context: Context) -> Indices:
        """The first of each."""
        seen: dict[bytes, int] = {}
        for i in range(len(units)):
            seen.setdefault(units[i].tobytes(), i)
        return np.array(list(seen.values()), dtype=np.int64)


LONGEST = 512
"""Tokens of a document that its surplexity is taken from, as in 2410.12341."""


class _KeepShare(Select):
    """Keeps a share of the units, by a score, in their order."""

    share: Annotated[float, Field(gt=0, le=1)]

    def best(self, scores: NDArray[np.float64]) -> Indices:
        """The numbers of the highest scores, in rising order; of equal ones, the first."""
        count = max(1, round(self.share * len(scores)))
        return np.sort(np.argsort(-scores, kind="stable")[:count])


class _ByModel(_KeepShare):
    """By the model's mean log-probability."""

    needs_model: ClassVar[bool] = True

    def mean_log_prob(self, units: Units, context: Context) -> NDArray[np.float64]:
        """Of documents each by itself, cut at `LONGEST` tokens; of other units as they stand."""
        most = LONGEST if self.unit == "document" else None
        return context.mean_log_prob(units, most=most)


class KeepLikeliest(_ByModel):
    """Keep the share of the units that the model finds likeliest: those of least surplexity."""

    kind: Literal["keep_likeliest"] = "keep_likeliest"

    def select(self, units: Units, context: Context) -> Indices:
        """The likeliest."""
        return self.best(self.mean_log_prob(units, context))


class Surplexity(_ByModel):
    """Keep the share of the units of the highest surplexity, exp(-mean log p): the tails.

    2410.12341 and its code: of whole documents cut at 512 tokens (``unit: document``), under the
    model that is about to be trained on, over the pool of all generations (regime ``accumulate``).
    """

    kind: Literal["surplexity"] = "surplexity"

    def select(self, units: Units, context: Context) -> Indices:
        """The least likely."""
        return self.best(-self.mean_log_prob(units, context))


class EntropyRate(_KeepShare):
    """Keep the share of the documents of the highest entropy rate; no model is asked.

    2610.01493: within each domain, for which a split stands here, documents are ranked by
    `fortifai.stats.entropy_rate.entropy_rate` of their first 1,500 words, in bits per word. Those
    of fewer than `least_words` have too little to repeat; they rank behind all others.

    Raises:
        RunFailed: No document has so many words.
    """

    kind: Literal["entropy_rate"] = "entropy_rate"
    unit: str | None = "document"
    least_words: PositiveInt = LEAST_WORDS
    domains: ClassVar[tuple[str, ...]] = ("text",)

    def select(self, units: Units, context: Context) -> Indices:
        """The share with the most that is new, of each split."""
        words = [words_of(context.family.text(units[i])) for i in range(len(units))]
        if max(map(len, words)) < self.least_words:
            raise RunFailed(
                f"the cure 'entropy_rate' ranks documents of {self.least_words} words or more, and "
                f"the longest has {max(map(len, words))}; lower its least_words"
            )
        rates = np.array(
            [entropy_rate(w[:MOST_WORDS]) if len(w) >= self.least_words else -1.0 for w in words]
        )
        within = [np.flatnonzero(units.splits == split) for split in np.unique(units.splits)]
        return np.sort(np.concatenate([of[self.best(rates[of])] for of in within]))


class Oracle(Select):
    """Keep what no model wrote: by the origin that the ledger knows, which nobody else does.

    It bounds every filter that tries to tell generated data from real data.
    """

    kind: Literal["oracle"] = "oracle"
    needs_real: ClassVar[bool] = True
    outside: ClassVar[bool] = True

    def select(self, units: Units, context: Context) -> Indices:
        """The real ones."""
        return np.flatnonzero(units.origins == REAL)


class GoldenRatio(Select):
    """Real data are the share `real` of what is trained on, generated data the rest.

    2502.18049, whose share is 1 / phi = 0.618 in every fit, whatever the generation. There a datum
    has a weight in the loss. Here units are drawn: each of one origin as often as any other, or
    once more, so that as many samples are trained on as the regime gave. A fit reads real data
    `real` of its time, as with weights, and all arms make as many updates.
    """

    kind: Literal["golden_ratio"] = "golden_ratio"
    real: Annotated[float, Field(gt=0, lt=1)] = 0.618
    needs_real: ClassVar[bool] = True

    def select(self, units: Units, context: Context) -> Indices:
        """As many real units as make the share, up to one, and generated ones for the rest."""
        lengths, chosen = np.diff(units.edges), np.zeros(0, dtype=np.int64)
        total = lengths.sum()
        for real in (True, False):
            of = np.flatnonzero((units.origins == REAL) == real)
            if not len(of):
                raise RunFailed(
                    f"the cure 'golden_ratio' mixes real and generated data, and has no "
                    f"{'real' if real else 'generated'} ones; keep some before it"
                )
            wanted = self.real * total if real else total - lengths[chosen].sum()
            drawn = drawn_evenly(of, units, wanted, context.seed)
            chosen = np.concatenate([chosen, drawn])
        return np.sort(chosen)


class TokenEditing(Edit):
    """Draw anew, in real text, what the base model is sure of; all else stays.

    2412.14689 and its code: where the base gives a token p > `above`, one of its `candidates`
    likeliest takes its place, drawn by softmax(log p / `beta`) over these; at beta 1 that is p made
    to sum to 1. All places are read in the text as it was, so no edit is read by another. Ends of
    documents stay and are not written. There the base is a large pretrained model; here it is the
    one that generation 0 starts from.
    """

    kind: Literal["token_editing"] = "token_editing"
    above: Annotated[float, Field(ge=0.5, lt=1)] = 0.99
    candidates: Annotated[int, Field(ge=2, le=256)] = 8
    beta: PositiveFloat = 1.0
    domains: ClassVar[tuple[str, ...]] = ("text",)
    needs_real: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def edit(self, units: Units, context: Context) -> Units:
        """The same, with some tokens of the real ones drawn anew."""
        places = np.flatnonzero(np.repeat(units.origins == REAL, np.diff(units.edges)))
        samples = units.samples.copy()
        found = context.base().candidates(samples[places], self.candidates)
        likeliest = found[:, 0]
        sure = (likeliest["id"] == samples[places]) & (likeliest["log_p"] > math.log(self.above))
        places, found = places[sure], found[sure]
        sharp = (found["log_p"].astype(np.float64) - found["log_p"][:, :1]) / self.beta
        total = np.exp(sharp).cumsum(axis=1)
        drawn = np.random.default_rng(context.seed).random((len(places), 1)) * total[:, -1:]
        chosen = (total <= drawn).sum(axis=1)
        samples[places] = found["id"][np.arange(len(places)), chosen]
        return dataclasses.replace(units, samples=samples)


CURES: tuple[type[Cure], ...] = (
    Deduplicate, KeepLikeliest, Surplexity, EntropyRate, Oracle, GoldenRatio, TokenEditing,
)  # fmt: skip
