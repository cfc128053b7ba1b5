"""The family `gmm`: a Gaussian mixture, fitted by scikit-learn's EM (ForTIFAI, Algorithm 2)."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.numpy import load_file, save_file

from fortifai.errors import Diverged, InputError
from fortifai.lab.budget import Spent
from fortifai.lab.domain import draw_share, even_edges
from fortifai.lab.progress import Progress
from fortifai.options import Options
from fortifai.points.gaussian import check_covariances, factors, weigh
from fortifai.points.sources import Mixture
from fortifai.weights import Weight, keeps_all

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

Floats = NDArray[np.float64]

_WEIGHTS = "model.safetensors"


class GMMOptions(Options):
    """A Gaussian mixture, fitted by scikit-learn's EM.

    `warm_start`: EM begins at the last generation's mixture, otherwise anew at k-means.
    """

    kind: Literal["gmm"] = "gmm"
    components: PositiveInt = 2
    covariance: Literal["full", "diag", "tied"] = "full"
    warm_start: bool = True
    tolerance: PositiveFloat = 1e-5
    max_iterations: PositiveInt = 2000
    reg_covar: Annotated[float, Field(ge=0)] = 1e-6
    all_seeds: ClassVar[bool] = False

    def make(self, weight: Weight) -> GMMFamily:
        """The family of an arm."""
        return GMMFamily(self, weight)

    def needs(self, dimension: int) -> tuple[int, str]:
        """The fewest points of a split, and why."""
        least = max(self.components, 2)
        return least, f"a mixture of {self.components} components needs {least}"


@dataclasses.dataclass(frozen=True)
class GMMFamily:
    """Makes the mixtures of one arm.

    Attributes:
        config: Number and covariance of the components, and how EM runs.
        weight: 1 for the points that are kept, 0 for the others, by their density under the
            mixture that is there already. EM takes whole points only.
    """

    config: GMMOptions
    weight: Weight

    def create(self, start: Literal["base", "scratch"], *, seed: int) -> GMM:
        """A mixture that has seen nothing; its first fit keeps every point."""
        return GMM(self)

    def share(self, samples: Floats, between: tuple[float, float], seed: int) -> Floats:
        """See `fortifai.lab.domain.Family`."""
        return draw_share(samples, between, 1, seed)

    def edges(self, samples: Floats, *, unit: str | None) -> NDArray[np.int64]:
        """Each point is a unit."""
        return even_edges(len(samples), 1)

    def load(self, folder: Path) -> GMM:
        """The mixture that an earlier generation saved."""
        found = load_file(folder / _WEIGHTS)
        return GMM(self, Mixture(found["weights"], found["means"], found["covariances"]))


class GMM:
    """A Gaussian mixture.

    Attributes:
        mixture: Weights (k,), means (k, d) and covariances (k, d, d), whatever their kind; None
            before the first fit.
    """

    def __init__(self, family: GMMFamily, mixture: Mixture | None = None) -> None:
        self.family, self.mixture, self.spent = family, mixture, Spent()

    def fit(self, samples: Floats, *, seed: int, progress: Progress) -> dict[str, Any]:
        """Drop the points that the weight gives 0, then run EM on the rest.

        The first fit begins at k-means and keeps all; a later one at the last mixture, if the
        family's `warm_start` says so.

        Args:
            samples: (n, d) float64.
            seed: Of k-means.
            progress: Told when it is done.

        Returns:
            ``points``, ``truncated_share``, ``iterations`` of EM and whether it ``converged``.

        Raises:
            InputError: The points have another shape, or weights are neither 0 nor 1.
            Diverged: Fewer points than components are left, or a component has become singular.
        """
        _check(samples)
        kept = samples if self.mixture is None else samples[self._keeps(samples)]
        needed = max(self.family.config.components, 2)
        if len(kept) < needed:
            raise Diverged(
                f"{len(kept)} of {len(samples):,} points were kept, a share of "
                f"{len(kept) / len(samples):.2g}; {needed} are needed"
            )
        from sklearn.exceptions import ConvergenceWarning  # here: it takes a second to load

        try:
            em = self._em(seed)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                # told in what is returned instead
                warnings.simplefilter("ignore", ConvergenceWarning)
                em.fit(kept)
        except ValueError as error:  # NumPy's LinAlgError is one
            raise Diverged(
                "a component has become singular (its points are one point, or lie in a plane)"
            ) from error
        mixture = Mixture(em.weights_, em.means_, self._full(em.covariances_))
        if not np.isfinite(mixture.weights).all():
            raise Diverged("the mixture has diverged: its parameters are no longer finite")
        # EM is content with less than drawing, measuring and the next fit need
        check_covariances(mixture.means, mixture.covariances, "a component has become singular")
        self.mixture = mixture
        self.spent.trained += len(samples)
        progress.step("fit", 1, 1)
        return {
            "points": len(samples),
            "truncated_share": 1.0 - len(kept) / len(samples),
            "iterations": int(em.n_iter_),
            "converged": bool(em.converged_),
        }

    def _keeps(self, samples: Floats) -> NDArray[np.bool_]:
        if keeps_all(self.family.weight):
            return np.ones(len(samples), dtype=bool)
        weight = weigh(self.family.weight, self.log_prob(samples))
        if not np.isin(weight, (0.0, 1.0)).all():
            raise InputError(
                "EM takes whole points, so the weight of a gmm must be 0 or 1; use keep or "
                "truncate_quantile"
            )
        keeps: NDArray[np.bool_] = weight == 1
        return keeps

    def _em(self, seed: int) -> GaussianMixture:
        config, start = self.family.config, {}
        if config.warm_start and self.mixture is not None:
            start = {
                "weights_init": self.mixture.weights / self.mixture.weights.sum(),
                "means_init": self.mixture.means,
                "precisions_init": self._precisions(),
            }
        from sklearn.mixture import GaussianMixture

        return GaussianMixture(
            config.components,
            covariance_type=config.covariance,
            tol=config.tolerance,
            max_iter=config.max_iterations,
            reg_covar=config.reg_covar,
            random_state=seed,
            **start,
        )

    def _precisions(self) -> Floats:
        """Inverse covariances in the form that scikit-learn has for this kind."""
        assert self.mixture is not None
        covariances, kind = self.mixture.covariances, self.family.config.covariance
        if kind == "diag":
            diagonals: Floats = np.einsum("kdd->kd", covariances)
            return 1.0 / diagonals
        inverse = np.linalg.inv(covariances).astype(np.float64)
        return inverse[0] if kind == "tied" else inverse

    def _full(self, covariances: Floats) -> Floats:
        """Covariances (k, d, d), from the form that scikit-learn has for this kind."""
        if self.family.config.covariance == "diag":
            return covariances[:, :, None] * np.eye(covariances.shape[1], dtype=np.float64)
        if self.family.config.covariance == "tied":
            return np.repeat(covariances[None], self.family.config.components, axis=0)
        return covariances

    def regenerate(self, samples: Floats, *, seed: int, progress: Progress) -> Floats:
        """As many new draws, whatever stands in `samples`; components in random order."""
        mixture = self._fitted()
        rng = np.random.default_rng(seed)
        n, d = samples.shape
        self.spent.generated += n
        weights = mixture.weights / mixture.weights.sum()
        component = rng.choice(len(weights), size=n, p=weights)
        scales = factors(mixture.covariances)
        noise = rng.standard_normal((n, d))
        progress.step("draw", 1, 1)
        drawn: Floats = mixture.means[component] + np.einsum("nij,nj->ni", scales[component], noise)
        return drawn

    def log_prob(self, samples: Floats) -> Floats:
        """Log-density of each point in nats, (n,) float64."""
        mixture = self._fitted()
        _check(samples)
        self.spent.scored += len(samples)
        terms = np.empty((len(mixture.weights), len(samples)))
        d = samples.shape[1]
        with np.errstate(divide="ignore"):  # a component of weight 0 has log-weight -inf
            log_weights = np.log(mixture.weights)
        for k, factor in enumerate(factors(mixture.covariances)):
            standard = np.linalg.solve(factor, (samples - mixture.means[k]).T)
            constant = d * np.log(2 * np.pi) + 2 * np.log(np.diag(factor)).sum()
            terms[k] = log_weights[k] - 0.5 * (np.einsum("dn,dn->n", standard, standard) + constant)
        log_density: Floats = np.logaddexp.reduce(terms, axis=0)
        return log_density

    @property
    def mixtures(self) -> list[Mixture]:
        """The mixture, of the one seed that there is."""
        return [self._fitted()]

    def save(self, folder: Path) -> None:
        """Write the parameters into a new folder."""
        folder.mkdir(parents=True)
        named = dataclasses.asdict(self._fitted())
        save_file({k: np.ascontiguousarray(v) for k, v in named.items()}, folder / _WEIGHTS)

    def _fitted(self) -> Mixture:
        if self.mixture is None:
            raise InputError("the mixture was not fitted yet; call fit first")
        return self.mixture


def _check(samples: Floats) -> None:
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise InputError(f"points of shape {samples.shape} came; they must be (n, d) and finite")
