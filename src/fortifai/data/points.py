"""Points in space: known distributions to draw from, and files of numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data.files import expand, file_format, read_utf8
from fortifai.errors import InputError

Points = NDArray[np.float64]

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


# --- distributions ----------------------------------------------------------------------------


def gaussian(
    n: int, *, dimension: int = 1, mean: float = 0.0, scale: float = 1.0, seed: int
) -> Points:
    """Draws of N(mean, scale^2 I), the same mean in every coordinate.

    Args:
        n: Number of points.
        dimension: d, number of coordinates.
        mean: Mean of each coordinate.
        scale: Standard deviation of each coordinate.
        seed: Of the draws.

    Returns:
        (n, d), float64.

    Raises:
        InputError: A number is outside its range.
    """
    _check("n", n, n >= 1, "a positive integer")
    _check("dimension", dimension, dimension >= 1, "a positive integer")
    _check("mean", mean, math.isfinite(mean), "a finite number")
    _check("scale", scale, 0 < scale < math.inf, "a finite number above 0")
    return mean + scale * _generator(seed).standard_normal((n, dimension))


def two_gaussians_mixture(distance: float = 4.0) -> Mixture:
    """The distribution that `two_gaussians` draws from.

    Two components of weight 1/2, centred at (-distance/2, 0) and (+distance/2, 0), with the
    covariances [[1, 0.5], [0.5, 1]] and [[1, -0.5], [-0.5, 1]].

    Args:
        distance: Between the two centres; may be 0.

    Raises:
        InputError: The distance is negative or not finite.
    """
    _check("distance", distance, 0 <= distance < math.inf, "a finite number, 0 or more")
    return Mixture(
        weights=np.array([0.5, 0.5]),
        means=np.array([[-distance / 2, 0.0], [distance / 2, 0.0]]),
        covariances=np.array(TWO_GAUSSIANS_COVARIANCES),
    )


def two_gaussians(n: int, *, distance: float = 4.0, seed: int) -> Points:
    """Independent draws of `two_gaussians_mixture`.

    Args:
        n: Number of points; how many come from which component is drawn too.
        distance: Between the two centres.
        seed: Of the draws.

    Returns:
        (n, 2), float64.

    Raises:
        InputError: A number is outside its range.
    """
    _check("n", n, n >= 1, "a positive integer")
    mixture = two_gaussians_mixture(distance)
    rng = _generator(seed)
    component = rng.choice(len(mixture.weights), size=n, p=mixture.weights)
    noise = rng.standard_normal((n, mixture.means.shape[1]))
    # x = m + L z has covariance L L^T
    factors = np.linalg.cholesky(mixture.covariances)[component]
    draws: Points = mixture.means[component] + np.einsum("nij,nj->ni", factors, noise)
    return draws


def blob_centers(centers: int = 3, dimension: int = 2) -> Points:
    """The centres of `blobs`, uniform in [-10, 10]^d and always the same.

    Fewer centres of the same dimension are the first ones of more.

    Args:
        centers: Their number, k.
        dimension: d, number of coordinates.

    Returns:
        (k, d), float64.

    Raises:
        InputError: A number is outside its range.
    """
    _check("centers", centers, centers >= 1, "a positive integer")
    _check("dimension", dimension, dimension >= 1, "a positive integer")
    return np.random.default_rng(_CENTERS_SEED).uniform(-10.0, 10.0, (centers, dimension))


def blobs(
    n: int, *, centers: int = 3, dimension: int = 2, spread: float = 1.0, seed: int
) -> Points:
    """Isotropic Gaussians about `blob_centers`, with as equal shares as n allows, shuffled.

    Args:
        n: Number of points.
        centers: Number of Gaussians.
        dimension: d, number of coordinates.
        spread: Standard deviation of each.
        seed: Of the draws; it does not move the centres.

    Returns:
        (n, d), float64.

    Raises:
        InputError: A number is outside its range.
    """
    from sklearn.datasets import make_blobs

    _check("n", n, n >= 1, "a positive integer")
    _check("spread", spread, 0 < spread < math.inf, "a finite number above 0")
    points: Points
    points, _ = make_blobs(
        n,
        centers=blob_centers(centers, dimension),
        cluster_std=spread,
        random_state=_random_state(seed),
    )
    return points


def moons(n: int, *, noise: float = 0.1, seed: int) -> Points:
    """Two half circles of radius 1 that reach into each other, shuffled.

    The upper one is centred at (0, 0), the lower one at (1, 0.5). Angles are evenly spaced: the
    seed decides the noise and the order, so without noise every seed gives the same set.

    Args:
        n: Number of points, half of them on each.
        noise: Standard deviation of the Gaussian noise on each coordinate.
        seed: Of noise and order.

    Returns:
        (n, 2), float64.

    Raises:
        InputError: A number is outside its range.
    """
    from sklearn.datasets import make_moons

    _check("n", n, n >= 1, "a positive integer")
    _check("noise", noise, 0 <= noise < math.inf, "a finite number, 0 or more")
    points: Points
    points, _ = make_moons(n, noise=noise, random_state=_random_state(seed))
    return points


def circles(n: int, *, noise: float = 0.05, factor: float = 0.5, seed: int) -> Points:
    """Two circles about (0, 0), of radius 1 and `factor`, shuffled.

    Angles are evenly spaced: the seed decides the noise and the order, so without noise every seed
    gives the same set.

    Args:
        n: Number of points, half of them on each.
        noise: Standard deviation of the Gaussian noise on each coordinate.
        factor: Radius of the inner circle, above 0 and below 1.
        seed: Of noise and order.

    Returns:
        (n, 2), float64.

    Raises:
        InputError: A number is outside its range.
    """
    from sklearn.datasets import make_circles

    _check("n", n, n >= 1, "a positive integer")
    _check("noise", noise, 0 <= noise < math.inf, "a finite number, 0 or more")
    _check("factor", factor, 0 < factor < 1, "a number above 0 and below 1")
    points: Points
    points, _ = make_circles(n, noise=noise, factor=factor, random_state=_random_state(seed))
    return points


def _generator(seed: int) -> np.random.Generator:
    _check("seed", seed, seed >= 0, "an integer, 0 or more")
    return np.random.default_rng(seed)


def _random_state(seed: int) -> np.random.RandomState:
    # on the generator's own stream: scikit-learn's integer seeds end at 2^32
    return np.random.RandomState(_generator(seed).bit_generator)


def _check(name: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise InputError(f"{name} is {value}; give {allowed}")


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


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file; pickled objects are refused.

    Raises:
        InputError: It cannot be read or is not a whole .npy file.
    """
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a readable file"
        ) from None
    except (ValueError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} is not a whole .npy file of numbers ({reason}); save it anew with numpy.save"
        ) from error
    return array


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
