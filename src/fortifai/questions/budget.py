"""What the writer `llm` may spend, and whether one more call may be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fortifai.errors import InputError

UNBOUNDED = 131_072
"""Tokens of an answer that no limit ends: as many as the contexts of today's models have."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run may spend, the calls in its journal included, and how often it tries.

    Attributes:
        calls: Most calls, failed ones too; None for no limit.
        cost: Most US dollars; None for no limit. See `Budget`.
        price_in: US dollars for a million tokens of prompt.
        price_out: US dollars for a million tokens of answer.
        tries: Calls in a row that may fail for one paragraph.
        backoff: Seconds before the second try; each further one waits twice as long, up to a
            minute.
        workers: Calls at a time.
    """

    calls: int | None = None
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    tries: int = 5
    backoff: float = 1.0
    workers: int = 4

    def __post_init__(self) -> None:
        if self.cost is not None and not (self.price_in or self.price_out):
            raise InputError(
                "--max-cost needs the endpoint's prices; give --price-in and --price-out in US "
                "dollars for a million tokens"
            )

    def price(self, tokens: tuple[int, int]) -> float:
        """US dollars of tokens in and out."""
        return (tokens[0] * self.price_in + tokens[1] * self.price_out) / 1e6


@dataclasses.dataclass(frozen=True, slots=True)
class Aside:
    """What is set aside for one call.

    Attributes:
        tokens: Most tokens in and out.
        price: Of those, US dollars.
        worst: Price if nothing ends the answer.
    """

    tokens: tuple[int, int]
    price: float
    worst: float


class Budget:
    """What was spent, and what is set aside for the calls under way.

    A call is made if the longest answer that it allows is within the budget. An endpoint may pass
    over the limit of an answer in silence, which shows only when the answer is there and paid for.
    So that no more than one comes so: calls to a stranger's endpoint go side by side only while
    each of them could be `UNBOUNDED` long; and after the first such answer all that follow are
    taken to be, or twice as long as the longest.

    Not safe for threads: the caller locks.

    Attributes:
        limits: What may be spent.
        longest: Most tokens of an answer that a call allows.
        trusted: Whether the endpoint is known to keep that.
        tokens: Tokens in and out of all calls so far.
        over: Tokens of the longest answer that was longer than its call allowed.
        under_way: What is set aside.
    """

    def __init__(self, limits: Limits, longest: int, *, trusted: bool) -> None:
        self.limits, self.longest, self.trusted = limits, longest, trusted
        self.tokens = (0, 0)
        self.over = 0
        self.under_way: list[Aside] = []
        self._dense = 1.0  # tokens that prompts really have, over what was guessed

    @property
    def spent(self) -> float:
        """US dollars so far."""
        return self.limits.price(self.tokens)

    @property
    def unkept(self) -> bool:
        """Whether an answer was longer than is allowed now."""
        return self.over > self.longest

    def note(self, tokens: tuple[int, int], *, over: int = 0, guess: int | None = None) -> None:
        """Count a call.

        Args:
            tokens: In and out.
            over: Tokens of its answer, if they are more than it allowed.
            guess: What its prompt was taken for, where `tokens` says what it was.
        """
        self.tokens = (self.tokens[0] + tokens[0], self.tokens[1] + tokens[1])
        self.over = max(self.over, over)
        if guess:
            self._dense = max(self._dense, tokens[0] / guess)

    def aside(self, guess: int) -> Aside:
        """What a call with a prompt of about `guess` tokens would need."""
        prompt = round(guess * self._dense)
        endless = max(UNBOUNDED, self.longest, 2 * self.over)
        most = (prompt, endless if self.unkept else self.longest)
        return Aside(most, self.limits.price(most), self.limits.price((prompt, endless)))

    def fits(self, aside: Aside) -> bool:
        """Whether a call may be made beside those under way."""
        if self.limits.cost is None:
            return True
        if self.under_way and not self.trusted:
            return self._with([each.worst for each in (*self.under_way, aside)])
        return self._with([each.price for each in (*self.under_way, aside)])

    def _with(self, prices: Sequence[float]) -> bool:
        assert self.limits.cost is not None
        return self.spent + sum(prices) <= self.limits.cost

    def why_not(self, aside: Aside) -> str:
        """Why a call that does not fit may not be made."""
        why = (
            f"--max-cost {self.limits.cost:g} may be passed by the next call, which costs up to "
            f"{aside.price:.4f}"
        )
        if not self.unkept:
            return why
        return (
            f"the endpoint does not keep --max-tokens {self.longest:,} (it wrote {self.over:,}), "
            f"so {why}"
        )
