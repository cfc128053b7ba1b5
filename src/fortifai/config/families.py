"""The families of models that need no tokenizer: `gaussian`, `gmm` and `vae`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fortifai.config.section import Section


class NoNoise(Section):
    """The estimates as they are."""

    kind: Literal["none"] = "none"


class MultiplicativeNoise(Section):
    """Mean and standard deviation each times its own N(1, scale^2): ForTIFAI's code for Fig. C4."""

    kind: Literal["multiplicative"]
    scale: Annotated[float, Field(gt=0)] = 0.1


class AdditiveNoise(Section):
    """Mean and standard deviation each plus its own N(0, scale^2): ForTIFAI's appendix C.

    A standard deviation that comes out negative is taken without its sign.
    """

    kind: Literal["additive"]
    scale: Annotated[float, Field(gt=0)] = 1.0


NoiseConfig = Annotated[NoNoise | MultiplicativeNoise | AdditiveNoise, Field(discriminator="kind")]


class GaussianConfig(Section):
    """One Gaussian of any dimension, fitted in closed form; all seeds of an arm at once.

    `estimator`: `mle` divides the squares by the (weighted) number of points, `unbiased` by one
    less. `bias`: lambda, the draws of a generation have lambda times the variance of the fit.
    """

    kind: Literal["gaussian"]
    estimator: Literal["mle", "unbiased"] = "mle"
    noise: NoiseConfig = NoNoise()
    bias: Annotated[float, Field(gt=0, le=1)] = 1.0


class GMMConfig(Section):
    """A Gaussian mixture, fitted by scikit-learn's EM.

    `warm_start`: EM begins at the last generation's mixture, otherwise anew at k-means.
    """

    kind: Literal["gmm"]
    components: PositiveInt = 2
    covariance: Literal["full", "diag", "tied"] = "full"
    warm_start: bool = True
    tolerance: PositiveFloat = 1e-5
    max_iterations: PositiveInt = 2000
    reg_covar: Annotated[float, Field(ge=0)] = 1e-6


class VAEConfig(Section):
    """The variational autoencoder of 'The Curse of Recursion', with Bernoulli pixels.

    `samples`: what a generation writes, the decoder's means or Bernoulli draws of them.
    """

    kind: Literal["vae"]
    latent: PositiveInt = 20
    channels: tuple[PositiveInt, PositiveInt] = (64, 128)
    beta: Annotated[float, Field(ge=0)] = 1.0
    epochs: PositiveInt = 30
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    batch_size: PositiveInt = 256
    samples: Literal["means", "bernoulli"] = "means"
