"""The rule for the phases of knowledge collapse, as the YAML declares it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fortifai.config.section import Section
from fortifai.evals.phases import PhaseRule

Lost = Annotated[float, Field(gt=0, lt=1)]


class PhasesConfig(Section):
    """When a phase begins; see `fortifai.evals.phases.PhaseRule`.

    `accuracy_lost`: share of generation 0's accuracy above chance whose loss begins B, confidently
    wrong. `adherence_lost`: share of its format adherence whose loss begins C. `certainty_lost`:
    share of its certainty whose loss makes a wrong model ``unsure`` instead of B. All are one half:
    a loss of half is also what time to failure counts, and with 200 questions it stands above the
    noise where a quarter often does not. `error`: probability of a false onset in one format whose
    curves are flat.
    """

    accuracy_lost: Lost = 0.5
    adherence_lost: Lost = 0.5
    certainty_lost: Lost = 0.5
    error: Annotated[float, Field(gt=0, le=0.5)] = 0.05

    def build(self) -> PhaseRule:
        """The rule."""
        return PhaseRule(
            accuracy_lost=self.accuracy_lost,
            adherence_lost=self.adherence_lost,
            certainty_lost=self.certainty_lost,
            error=self.error,
        )
