"""What is done to a model's weights between its fit and its rewriting.

The steps under `after_fit` of an arm are taken one after the other; what they return stands in the
generation's ``fit.json``. To add one, write a subclass of `AfterFit` with a ``kind`` and an
``apply``, and name it in `STEPS`.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveFloat, PositiveInt

from fortifai.errors import blaming
from fortifai.lab.domain import Model, Samples
from fortifai.lab.progress import Progress
from fortifai.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class WithWeights(Model, Protocol):
    """A model that is a network: of text or of images."""

    def weights(self) -> Mapping[str, Tensor]:
        """Its parameters themselves, by name, to be changed in place."""
        ...

    def fit_plainly(self, samples: Samples, epochs: int, *, seed: Any, progress: Progress) -> None:
        """Train by cross entropy for so many epochs, otherwise as `fit` does."""
        ...


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a step knows besides the model.

    Attributes:
        generation: Which one was fitted.
        seed: For what the step draws at random.
        samples: What it was fitted to.
        share: A random share of the units of samples: see `fortifai.lab.domain.Family`.
        first: The model of generation 0; for a step with `needs_first`, from generation 1 on.
        progress: Told what takes long.
    """

    generation: int
    seed: Any
    samples: Samples
    share: Callable[[Samples, tuple[float, float], Any], Samples]
    first: Callable[[], Any]
    progress: Progress


class AfterFit(Options):
    """A step between the fit of a generation and its rewriting.

    Attributes:
        kind: By which a YAML names it.
        domains: Kinds of data whose models it can change.
        needs_first: Whether it asks for the model of generation 0, whose weights are then kept.
    """

    kind: str
    domains: ClassVar[tuple[str, ...]] = ("text", "images")
    needs_first: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: Any, fitted: Fitted) -> dict[str, Any]:
        """Change the weights of a `WithWeights`; what is worth writing down of it."""

    def row(self, model: Any, fitted: Fitted) -> dict[str, Any]:
        """Take the step; what ``fit.json`` says of it."""
        with blaming(f"the step after a fit {self.kind!r}", self):
            told = self.apply(model, fitted)
            json.dumps(told)  # now, since it is written when the generation is done
            return {"kind": self.kind, **told}


class StepBack(AfterFit):
    """Weights are averaged with those of generation 0: theta = (1 - share) theta + share theta_0.

    A plain control of the steps that push weights somewhere; ours. Generation 0 stays as it is.
    """

    kind: Literal["step_back"] = "step_back"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    needs_first: ClassVar[bool] = True

    def apply(self, model: WithWeights, fitted: Fitted) -> dict[str, Any]:
        """See `AfterFit`."""
        import torch  # here: who reads a YAML of Gaussians needs none

        if fitted.generation:
            with torch.no_grad():
                first = fitted.first().weights()
                for name, theta in model.weights().items():
                    theta.lerp_(first[name].to(theta.device), self.share)
        return {}


class Neon(AfterFit):
    """A step away from what training on own data makes of the model: negative extrapolation.

    2510.03597: theta = (1 + w) theta_r - w theta_s, with theta_r the model as it was fitted and
    theta_s the same after a short training on its own samples, by cross entropy. There samples of
    image models are drawn; here the model rewrites `share` of the units it was fitted to, as the
    arm decodes, and reads them for `epochs`. The authors' w is tuned for each model.
    """

    kind: Literal["neon"] = "neon"
    w: PositiveFloat = 0.5
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    epochs: PositiveInt = 1

    def apply(self, model: WithWeights, fitted: Fitted) -> dict[str, Any]:
        """See `AfterFit`."""
        import torch

        chosen = fitted.share(fitted.samples, (0.0, self.share), fitted.seed)
        own = model.regenerate(chosen, seed=fitted.seed, progress=fitted.progress)
        before = {name: theta.detach().clone() for name, theta in model.weights().items()}
        model.fit_plainly(own, self.epochs, seed=fitted.seed, progress=fitted.progress)
        squares = 0.0
        with torch.no_grad():
            for name, theta in model.weights().items():
                step = before[name] - theta
                squares += float(step.double().square().sum())
                theta.copy_(before[name] + self.w * step)
        return {"own": len(own), "step": self.w * squares**0.5}


STEPS: tuple[type[AfterFit], ...] = (StepBack, Neon)
