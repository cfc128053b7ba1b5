"""What a generation costs, in three currencies, counted by its models where they work."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Spent:
    """Samples (tokens of text, points, images) that models have worked on.

    The loop hands one to every model that takes part in a generation, and writes down what it has
    come to before the generation is measured: measuring costs every arm the same.

    Attributes:
        trained: Samples trained on: updates times batch.
        generated: Samples written anew.
        scored: Samples read for their probabilities: by cures, by fitted weights, by the choice of
            a checkpoint.
    """

    trained: int = 0
    generated: int = 0
    scored: int = 0
