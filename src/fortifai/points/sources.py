"""Where points come from: known distributions to draw from, and files of numbers.

To add a source, write a subclass of `PointSource` with a ``kind``, and name it in `SOURCES`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from fortifai.errors import InputError
from fortifai.file_formats import expand, file_format, read_npy, read_utf8
from fortifai.lab.plugins import Corpus
from fortifai.options import Options

Points = NDArray[np.float64]
NotNegative = Annotated[float, Field(ge=0)]

# opposite signs of the correlation: no single covariance fits both components
TWO_GAUSSIANS_COVARIANCES = (((1.0, 0.5), (0.5, 1.0)), ((1.0, -0.5), (-0.5, 1.0)))

# the centres of the blobs are the world that is sampled, so no seed of a draw moves them; with this
# seed the first three in the plane are more than 10 apart
_CENTERS_SEED = 2


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of k Gaussians in d dimensions.

    Attributes:
        weights: Shares of the components, (k,), which sum to 1.
        means: Their means, (k, d).
        covariances: Their covariances, (k, d, d).
    """

    weights: Points
    means: Points
    covariances: Points

    def moments(self) -> tuple[Points, Points]:
        """Mean (d,) and covariance (d, d) of the whole."""
        mean = self.weights @ self.means
        around = self.means - mean
        within = np.einsum("k,kde->de", self.weights, self.covariances)
        return mean, within + np.einsum("k,kd,ke->de", self.weights, around, around)


# --- distributions ----------------------------------------------------------------------------


class PointSource(Corpus):
    """A distribution that points are drawn from."""

    data: ClassVar[str] = "points"

    @abstractmethod
    def draw(self, n: int, seed: int) -> Points:
        """Independent draws, (n, d) float64, the same for the same seed."""

    def truth(self) -> Mixture | None:
        """The distribution itself, where it is a known mixture of Gaussians."""
        return None


class GaussianPoints(PointSource):
    """N(mean, scale^2 I), the same mean in every coordinate."""

    kind: Literal["gaussian"] = "gaussian"
    dimension: PositiveInt = 1
    mean: float = 0.0
    scale: PositiveFloat = 1.0

    def draw(self, n: int, seed: int) -> Points:
        """See `PointSource`."""
        normal = np.random.default_rng(seed).standard_normal((n, self.dimension))
        return self.mean + self.scale * normal

    def truth(self) -> Mixture:
        """One component."""
        d = self.dimension
        covariance = self.scale**2 * np.eye(d)
        return Mixture(np.ones(1), np.full((1, d), self.mean), covariance[None])


class TwoGaussians(PointSource):
    """Two Gaussians of the plane, of weight 1/2 each, whose centres are `distance` apart.

    Centres at (-distance/2, 0) and (+distance/2, 0); covariances [[1, 0.5], [0.5, 1]] and
    [[1, -0.5], [-0.5, 1]].
    """

    kind: Literal["two_gaussians"] = "two_gaussians"
    distance: NotNegative = 4.0

    def draw(self, n: int, seed: int) -> Points:
        """See `PointSource`; how many come from which component is drawn too."""
        mixture, rng = self.truth(), np.random.default_rng(seed)
        component = rng.choice(2, size=n, p=mixture.weights)
        noise = rng.standard_normal((n, 2))
        # x = m + L z has covariance L L^T
        factors = np.linalg.cholesky(mixture.covariances)[component]
        draws: Points = mixture.means[component] + np.einsum("nij,nj->ni", factors, noise)
        return draws

    def truth(self) -> Mixture:
        """Both components."""
        return Mixture(
            weights=np.array([0.5, 0.5]),
            means=np.array([[-self.distance / 2, 0.0], [self.distance / 2, 0.0]]),
            covariances=np.array(TWO_GAUSSIANS_COVARIANCES),
        )


class Blobs(PointSource):
    """Round Gaussians of standard deviation `spread`, with as equal shares as n allows, shuffled.

    Their centres are uniform in [-10, 10]^d and always the same: fewer centres of one dimension
    are the first ones of more. (scikit-learn's make_blobs.)
    """

    kind: Literal["blobs"] = "blobs"
    centers: PositiveInt = 3
    dimension: PositiveInt = 2
    spread: PositiveFloat = 1.0

    def draw(self, n: int, seed: int) -> Points:
        """See `PointSource`; the seed does not move the centres."""
        from sklearn.datasets import make_blobs

        points: Points
        state = _random_state(seed)
        points, _ = make_blobs(
            n, centers=self.truth().means, cluster_std=self.spread, random_state=state
        )
        return points

    def truth(self) -> Mixture:
        """Components of equal weight."""
        k, d = self.centers, self.dimension
        means = np.random.default_rng(_CENTERS_SEED).uniform(-10.0, 10.0, (k, d))
        return Mixture(np.full(k, 1 / k), means, np.repeat(self.spread**2 * np.eye(d)[None], k, 0))


class Moons(PointSource):
    """Two half circles of radius 1 that reach into each other, shuffled; scikit-learn's make_moons.

    The upper one is centred at (0, 0), the lower one at (1, 0.5). Angles are evenly spaced: the
    seed decides the noise and the order, so without noise every seed gives the same set. `noise`:
    its standard deviation in each coordinate.
    """

    kind: Literal["moons"] = "moons"
    noise: NotNegative = 0.1

    def draw(self, n: int, seed: int) -> Points:
        """See `PointSource`."""
        from sklearn.datasets import make_moons

        points: Points
        points, _ = make_moons(n, noise=self.noise, random_state=_random_state(seed))
        return points


class Circles(PointSource):
    """Two circles about (0, 0), of radius 1 and `factor`, shuffled; scikit-learn's make_circles.

    Angles are evenly spaced, as those of `Moons`.
    """

    kind: Literal["circles"] = "circles"
    noise: NotNegative = 0.05
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def draw(self, n: int, seed: int) -> Points:
        """See `PointSource`."""
        from sklearn.datasets import make_circles

        points: Points
        state = _random_state(seed)
        points, _ = make_circles(n, noise=self.noise, factor=self.factor, random_state=state)
        return points


class PointFiles(Options):
    """Points from .npy or .csv files, one a row; globs allowed."""

    kind: Literal["files"] = "files"
    files: Annotated[tuple[str, ...], Field(min_length=1)]


SOURCES: tuple[type[Options], ...] = (
    *(GaussianPoints, TwoGaussians, Blobs, Moons, Circles),
    PointFiles,
)


def _random_state(seed: int) -> np.random.RandomState:
    # on the generator's own stream: scikit-learn's integer seeds end at 2^32
    return np.random.RandomState(np.random.default_rng(seed).bit_generator)


# --- files ------------------------------------------------------------------------------------


def read_points(files: Sequence[str | Path], root: Path) -> Points:
    """Read .npy and .csv files (.csv perhaps packed, .gz or .zst) and stack their rows.

    A .csv holds numbers separated by commas, below one header row at most (a first row in which no
    cell is a number); blank lines are passed over. A .npy holds integers or floats, one row a
    point; an array of one axis is one column.

    Args:
        files: Paths or globs, relative to `root`; a file that is named twice is read once.
        root: Folder of relative paths.

    Returns:
        (n, d), float64, all finite.

    Raises:
        InputError: A file is missing, empty, not what its name says, holds something that is not a
            finite number (names the line), or has other columns than the file before it.
    """
    paths = expand(files, root)
    if not paths:
        raise InputError("no files of points are named; name at least one .npy or .csv file")
    parts = [_read_file(path) for path in paths]
    first = parts[0].shape[1]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1] != first:
            raise InputError(
                f"{path} has {part.shape[1]} columns and {paths[0]} has {first}; give files with "
                "the same columns"
            )
    return np.concatenate(parts)


def _read_file(path: Path) -> Points:
    kind = file_format(path).kind
    if kind == "csv":
        return _read_csv(path)
    if kind != "npy":
        raise InputError(f"{path} is neither .npy nor .csv; give points in one of these formats")
    array = read_npy(path)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path} holds {array.dtype}, not numbers; save integers or floats")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise InputError(
            f"{path} has {array.ndim} axes; give 2, (points, columns), or 1 for a single column"
        )
    if not array.size:
        raise InputError(f"{path} is empty, of shape {array.shape}; give at least one point")
    points = array.astype(np.float64)
    _check_finite(points, str(path))
    return points


def _read_csv(path: Path) -> Points:
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""))
    rows: list[list[float]] = []
    width = 0
    try:
        for cells in reader:
            if not "".join(cells).strip() and len(cells) < 2:
                continue
            where = f"{path}, line {reader.line_num}"
            if not width:
                width = len(cells)
                if all(_number(cell) is None for cell in cells):
                    continue
            if len(cells) != width:
                raise InputError(
                    f"{where}, has {len(cells)} columns and the first row has {width}; give every "
                    "row as many"
                )
            rows.append([_cell(cell, f"{where}, column {i}") for i, cell in enumerate(cells, 1)])
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}, is not CSV ({error}); separate numbers by commas"
        ) from error
    if not rows:
        raise InputError(f"{path} has a header and no points; give at least one row of numbers")
    return np.array(rows)


def _cell(cell: str, where: str) -> float:
    value = _number(cell)
    if value is None or not math.isfinite(value):
        kind = "number" if value is None else "finite number"
        raise InputError(
            f"{where}: {cell!r} is not a {kind}; give numbers separated by commas, below at most "
            "one header row"
        )
    return value


def _number(cell: str) -> float | None:
    try:
        # float() reads 1_000 as Python does; in a table it is a slip
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


# --- checks -----------------------------------------------------------------------------------


def check_points(points: NDArray[Any], what: str) -> None:
    """Whether a Gaussian with a regular covariance can be fitted to points.

    Rows and columns are counted from 1 in messages.

    Args:
        points: (n, d).
        what: What they are, for messages.

    Raises:
        InputError: They have another number of axes, are empty or not finite, fewer than 2 of them
            differ, or they have no spread in some column or direction (the rank of the centred
            points is below d).
    """
    if points.ndim != 2:
        raise InputError(f"{what} has {points.ndim} axes; give 2, (points, columns)")
    if not points.size:
        raise InputError(f"{what} is empty, of shape {points.shape}; give at least 2 points")
    _check_finite(points, what)
    differs = (points != points[0]).any(axis=0)
    if not differs.any():
        raise InputError(
            f"{what} has fewer than 2 different points ({len(points)} in all); give points that "
            "differ"
        )
    if not differs.all():
        column = int(np.argmin(differs)) + 1
        raise InputError(
            f"{what} has no spread in column {column}: all {len(points)} values are equal; leave "
            "that column out or add noise"
        )
    _check_rank(points, what)


def _check_finite(points: NDArray[Any], what: str) -> None:
    bad = ~np.isfinite(points)
    if bad.any():
        row = int(bad.any(axis=1).argmax()) + 1
        raise InputError(
            f"{what} has {bad.sum()} values that are NaN or infinite, the first one in row {row}; "
            "leave such rows out or repair them"
        )


def _check_rank(points: NDArray[Any], what: str) -> None:
    """Refuse a direction without spread; no column may be constant."""
    n, d = points.shape
    if n <= d:
        raise InputError(
            f"{what} has {n} points in {d} columns, which leave some direction without spread; "
            f"give at least {d + 1} points"
        )
    # columns in units of their own, so that metres beside millimetres are not taken for flat;
    # first by the largest value, as squares and sums of very large ones overflow
    centred = points / np.abs(points).max(axis=0)
    for _ in range(2):  # the first mean of values far from 0 is off by n roundings
        centred = centred - centred.mean(axis=0)
    reach = np.abs(centred).max(axis=0)
    eps = np.finfo(np.float64).eps
    if (reach < 64 * eps).any():
        raise InputError(
            f"{what} has no spread in column {int(reach.argmin()) + 1}: its values differ by "
            "rounding alone; leave that column out or add noise"
        )
    if d == 1:
        return
    _, values, directions = np.linalg.svd(centred / reach, full_matrices=False)
    # two sources of error: the decomposition's (numpy.linalg.matrix_rank's rule) and the rounding
    # of the values themselves, which grows as they lie far from 0 compared with their spread
    rounding = 4 * math.sqrt(n) * np.linalg.norm(directions / reach, axis=1)
    flat = values <= eps * np.maximum(values[0] * n, rounding)
    if flat.any():
        involved = np.flatnonzero(np.abs(directions[flat]).max(axis=0) > 1e-6) + 1
        names = ", ".join(map(str, involved[:6])) + (", ..." if len(involved) > 6 else "")
        raise InputError(
            f"{what} has no spread in some direction: columns {names} depend on each other "
            f"linearly (rank {d - flat.sum()} of {d}); leave one out or add noise"
        )
