import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fortifai.errors import InputError
from fortifai.file_formats import read_npy
from fortifai.points.sources import (
    Blobs,
    Circles,
    GaussianPoints,
    Mixture,
    Moons,
    TwoGaussians,
    check_points,
    read_points,
)


def gaussian(n, *, seed, **options):
    return GaussianPoints(**options).draw(n, seed)


def two_gaussians(n, *, seed, **options):
    return TwoGaussians(**options).draw(n, seed)


def two_gaussians_mixture(distance=4.0):
    return TwoGaussians(distance=distance).truth()


def blobs(n, *, seed, **options):
    return Blobs(**options).draw(n, seed)


def blob_centers(centers=3, dimension=2):
    return Blobs(centers=centers, dimension=dimension).truth().means


def moons(n, *, seed, **options):
    return Moons(**options).draw(n, seed)


def circles(n, *, seed, **options):
    return Circles(**options).draw(n, seed)


# Tolerances of moments are 5 standard errors: a right sampler misses one in two million, and the
# seeds are fixed.
ERRORS = 5
DRAWS = {
    "gaussian": lambda n, seed: gaussian(n, dimension=2, seed=seed),
    "two_gaussians": lambda n, seed: two_gaussians(n, seed=seed),
    "blobs": lambda n, seed: blobs(n, seed=seed),
    "moons": lambda n, seed: moons(n, seed=seed),
    "circles": lambda n, seed: circles(n, seed=seed),
}
draws = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def assert_covariance(points, expected):
    """Var(s_ij) = (S_ii S_jj + S_ij^2) / n for Gaussian points."""
    spread = np.diag(expected)
    error = np.sqrt((np.outer(spread, spread) + expected**2) / len(points))
    assert (np.abs(np.cov(points.T) - expected) < ERRORS * error).all()


def assert_mean(points, expected, variance):
    error = np.sqrt(variance / len(points))
    assert (np.abs(points.mean(axis=0) - expected) < ERRORS * error).all()


# --- what all draws share ---------------------------------------------------------------------


@draws
def test_a_draw_has_its_size_and_its_seed(draw):
    points = draw(1001, 3)
    assert points.shape == (1001, 2)
    assert points.dtype == np.float64
    assert np.array_equal(points, draw(1001, 3))
    assert draw(1, 0).shape == (1, 2)
    check_points(points, "the draw")


@draws
@pytest.mark.parametrize("other", [1, 2**32, 2**70])
def test_seeds_are_independent_row_by_row(draw, other):
    n = 4000
    a, b = draw(n, 0), draw(n, other)
    for x in a.T:
        for y in b.T:
            # the correlation of independent columns has standard error 1 / sqrt(n)
            assert abs(np.corrcoef(x, y)[0, 1]) < ERRORS / np.sqrt(n)


@draws
def test_rows_are_in_no_order(draw):
    n = 4000
    for x in draw(n, 0).T:
        # an unshuffled half-and-half sample has a lag-1 correlation near 1
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < ERRORS / np.sqrt(n)


@draws
def test_the_global_generator_is_left_alone(draw):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - this is the one to leave alone
    draw(10, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (GaussianPoints, {"dimension": 0}),
        (GaussianPoints, {"mean": np.nan}),
        (GaussianPoints, {"scale": 0.0}),
        (GaussianPoints, {"scale": np.inf}),
        (TwoGaussians, {"distance": -1.0}),
        (TwoGaussians, {"distance": np.nan}),
        (Blobs, {"centers": 0}),
        (Blobs, {"dimension": 0}),
        (Blobs, {"spread": -0.5}),
        (Moons, {"noise": -0.1}),
        (Circles, {"noise": np.nan}),
        (Circles, {"factor": 1.0}),
        (Circles, {"factor": 0.0}),
    ],
)
def test_numbers_outside_their_range(source, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        source(**options)


# --- each distribution against theory ---------------------------------------------------------


def test_moments_of_the_gaussian():
    n = 100_000
    points = gaussian(n, dimension=3, mean=2.0, scale=3.0, seed=5)
    assert_mean(points, 2.0, 9.0)
    assert_covariance(points, 9.0 * np.eye(3))
    # E z^4 = 3, and its sample mean has variance (E z^8 - 9) / n = 96 / n
    fourth = (((points - 2.0) / 3.0) ** 4).mean(axis=0)
    assert (np.abs(fourth - 3) < ERRORS * np.sqrt(96 / n)).all()
    assert gaussian(7, seed=0).shape == (7, 1)


def test_two_gaussians_by_component():
    # 40 apart, so that the sign of x tells the component
    mixture = two_gaussians_mixture(40.0)
    points = two_gaussians(100_000, distance=40.0, seed=2)
    left = points[:, 0] < 0
    assert abs(left.mean() - 0.5) < ERRORS * np.sqrt(0.25 / len(points))
    assert left.sum() != len(points) // 2  # the shares are drawn too
    for k, part in enumerate((points[left], points[~left])):
        assert_mean(part, mixture.means[k], np.diag(mixture.covariances[k]))
        assert_covariance(part, mixture.covariances[k])


def test_two_gaussians_against_the_distribution_function():
    points = two_gaussians(20_000, seed=4)
    # on the axis (cos a, sin a) each component is a Gaussian of known mean and variance; the
    # covariances have correlation +1/2 on the left and -1/2 on the right
    for angle in (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4, 1.0):
        axis = np.array([np.cos(angle), np.sin(angle)])
        variances = 1 + np.sin(2 * angle) * np.array([0.5, -0.5])
        means = np.array([-2.0, 2.0]) * axis[0]

        def cdf(x, means=means, variances=variances):
            parts = zip(means, variances, strict=True)
            return sum(0.5 * stats.norm.cdf(x, m, np.sqrt(v)) for m, v in parts)

        # five tests with a fixed seed; exchanged covariances give p below 1e-40 at pi/4
        assert stats.kstest(points @ axis, cdf).pvalue > 1e-3


def test_the_mixture_of_two_gaussians():
    mixture = two_gaussians_mixture()
    assert isinstance(mixture, Mixture)
    assert mixture.weights.tolist() == [0.5, 0.5]
    assert mixture.means.tolist() == [[-2.0, 0.0], [2.0, 0.0]]
    assert mixture.covariances.shape == (2, 2, 2)
    assert not np.array_equal(*mixture.covariances)
    assert (np.linalg.eigvalsh(mixture.covariances) > 0).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixture.weights = np.ones(2)


def nearest_center(points, centers):
    return np.linalg.norm(points[:, None] - centers, axis=2).argmin(axis=1)


@pytest.mark.parametrize("seed", [0, 1, 12])
def test_blobs_lie_about_the_same_centers_for_every_seed(seed):
    centers = blob_centers(3, 2)
    points = blobs(9000, spread=0.7, seed=seed)
    which = nearest_center(points, centers)  # 10 apart: 7 standard deviations to the border
    assert np.bincount(which).tolist() == [3000, 3000, 3000]
    for k, center in enumerate(centers):
        assert_mean(points[which == k], center, 0.49)
        assert_covariance(points[which == k], 0.49 * np.eye(2))


def test_centers_of_blobs():
    centers = blob_centers(5, 3)
    assert centers.shape == (5, 3)
    assert (np.abs(centers) <= 10).all()
    assert np.array_equal(blob_centers(2, 3), centers[:2])
    pairs = np.linalg.norm(blob_centers()[:, None] - blob_centers(), axis=2)
    assert (pairs[np.triu_indices(3, 1)] > 10).all()
    assert blobs(10, centers=4, dimension=5, seed=0).shape == (10, 5)


def distance_to_half_circle(points, center, side):
    """Of radius 1; `side` +1 for the upper half and -1 for the lower one."""
    rel = points - center
    ends = [np.linalg.norm(rel - end, axis=1) for end in ([1, 0], [-1, 0])]
    on_side = side * rel[:, 1] >= 0
    return np.where(on_side, np.abs(np.linalg.norm(rel, axis=1) - 1), np.minimum(*ends))


def distances_to_moons(points):
    upper = distance_to_half_circle(points, np.array([0.0, 0.0]), 1)
    lower = distance_to_half_circle(points, np.array([1.0, 0.5]), -1)
    return upper, lower


def test_moons_are_two_half_circles():
    upper, lower = distances_to_moons(moons(2000, noise=0.0, seed=0))
    # sines and cosines are exact to a few units of 2^-53
    assert (np.minimum(upper, lower) < 1e-14).all()
    assert (upper < lower).sum() == 1000

    upper, lower = distances_to_moons(moons(40_000, noise=0.02, seed=1))
    # across the arc the noise is N(0, 0.02^2), whose square has variance 2 * 0.02^4; curvature and
    # the arcs' ends change its mean by less than 1 %, which is one standard error more
    square = (np.minimum(upper, lower) ** 2).mean()
    assert abs(square / 0.02**2 - 1) < (ERRORS + 1) * np.sqrt(2 / 40_000)
    assert (upper < lower).sum() == 20_000  # the arcs are 0.5 apart, 25 standard deviations


@pytest.mark.parametrize("factor", [0.5, 0.3])
def test_circles_have_their_radii(factor):
    radii = np.linalg.norm(circles(2000, noise=0.0, factor=factor, seed=0), axis=1)
    inner = np.abs(radii - factor) < 1e-14  # as for the moons
    assert inner.sum() == 1000
    assert (np.abs(radii[~inner] - 1) < 1e-14).all()

    sigma, n = 0.05, 20_000
    points = circles(2 * n, factor=factor, seed=1)
    radii = np.linalg.norm(points, axis=1)
    border = (1 + factor) / 2  # 5 standard deviations from each circle or more
    for part, radius in ((radii[radii < border], factor), (radii[radii > border], 1.0)):
        assert abs(len(part) - n) < 5
        # noise across a circle moves the mean radius by sigma^2 / 2r, and its variance by a share
        # of sigma^2 / 2r^2, 1.4 % at r = 0.3
        shift = sigma**2 / (2 * radius)
        assert abs(part.mean() - radius - shift) < ERRORS * sigma / np.sqrt(n)
        share = sigma**2 / (2 * radius**2)
        assert abs(part.var() / sigma**2 - 1 + share) < ERRORS * np.sqrt(2 / n)
    # points lie all the way round: the mean of a circle is its centre
    assert_mean(points, 0.0, (1 + factor**2) / 4 + sigma**2)


# --- files ------------------------------------------------------------------------------------


def write(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def npy(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("x,y\n1,2\n3,4", [[1, 2], [3, 4]]),
        ("\ufeffx\n1\n\n-2.5e-3\n", [[1], [-0.0025]]),
        ('"x, in m",y\r\n"1", 2 \r\n\r\n3,+4.\r\n', [[1, 2], [3, 4]]),
        (" \n,\n1,2\n", [[1, 2]]),  # a header may have empty names
        ("5\n", [[5]]),
    ],
)
def test_csv(tmp_path, text, rows):
    write(tmp_path, "a.csv", text)
    points = read_points(["a.csv"], tmp_path)
    assert points.dtype == np.float64
    assert points.tolist() == rows


@settings(max_examples=50)
@given(st.data())
def test_every_double_comes_back_from_csv(tmp_path_factory, data):
    d = data.draw(st.integers(1, 4))
    number = st.floats(allow_nan=False, allow_infinity=False)
    rows = data.draw(st.lists(st.lists(number, min_size=d, max_size=d), min_size=1, max_size=9))
    folder = tmp_path_factory.mktemp("csv")
    write(folder, "a.csv", "\n".join(",".join(map(repr, row)) for row in rows))
    assert read_points(["a.csv"], folder).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n\n3,four\n", "line 4, column 2: 'four' is not a number"),
        ("1,2\n3,\n", "line 2, column 2: '' is not a number"),
        ("1,2\nx,y\n", "line 2, column 1: 'x' is not a number"),  # a header is the first row
        ("x,y\nm,s\n1,2\n", "line 2, column 1: 'm'"),  # and only one
        ("id,2020\n1,2\n", "line 1, column 1: 'id' is not a number"),
        ("1,2\n1_000,2\n", "line 2, column 1: '1_000' is not a number"),
        ("1,2\nnan,2\n", "line 2, column 1: 'nan' is not a finite number"),
        ("1,2\n3,-inf\n", "line 2, column 2: '-inf' is not a finite number"),
        ("1,2\n3,1e999\n", "line 2, column 2: '1e999' is not a finite number"),
        ("x;y\n1;2\n", "line 2, column 1: '1;2' is not a number; give numbers separated by commas"),
        ('"1\n",2\nx,3\n', "line 3, column 1: 'x'"),  # lines, not rows, are counted
        ("1,2\n3\n", "line 2, has 1 columns and the first row has 2"),
        ("x,y\n1,2,3\n", "line 2, has 3 columns and the first row has 2"),
        ("1\n" + "2" * 200_000 + "\n", "line 2, is not CSV"),
        ("x,y\n", "has a header and no points"),
        ("", "is empty"),
        (b"1,2\xff\n", "is not UTF-8"),
    ],
)
def test_csv_that_is_not_numbers(tmp_path, text, message):
    write(tmp_path, "a.csv", text)
    with pytest.raises(InputError, match=message) as e:
        read_points(["a.csv"], tmp_path)
    assert "a.csv" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "uint8", ">f4", ">i2"])
def test_npy_of_any_number_type(tmp_path, kind):
    rows = [[1, 2], [3, 4], [200, 6]]
    write(tmp_path, "a.npy", npy(np.array(rows, dtype=kind)))
    points = read_points(["a.npy"], tmp_path)
    assert points.dtype == np.float64
    assert points.dtype.isnative
    assert points.tolist() == rows


def test_files_and_globs_are_stacked_in_order(tmp_path):
    write(tmp_path, "p2.csv", "x\n3\n4\n")
    write(tmp_path, "p1.csv", "1\n2\n")
    write(tmp_path, "q.npy", npy(np.array([5.0, 6.0])))  # one axis is one column
    write(tmp_path, "f.npy", npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))))
    points = read_points(["q.npy", "p*.csv", "p1.csv", str(tmp_path / "q.npy")], tmp_path)
    assert points.tolist() == [[5], [6], [1], [2], [3], [4]]
    assert read_points(["f.npy"], tmp_path).tolist() == [[0, 1, 2], [3, 4, 5]]


class Surprise:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a whole .npy file"),
        (b"1,2\n", "is not a whole .npy file"),
        (npy(np.zeros((5, 2)))[:-1], "is not a whole .npy file"),
        (npy(np.array([Surprise()]), allow_pickle=True), "is not a whole .npy file"),
        (npy(np.array(["a"])), "holds <U1, not numbers"),
        (npy(np.array([1j])), "holds complex128"),
        (npy(np.array([True])), "holds bool"),
        (npy(np.zeros((2, 2, 2))), "has 3 axes; give 2"),
        (npy(np.array(1.0)), "has 0 axes"),
        (npy(np.zeros((0, 2))), r"is empty, of shape \(0, 2\)"),
        (npy(np.zeros((2, 0))), r"is empty, of shape \(2, 0\)"),
        (
            npy(np.array([[0, 1], [np.nan, np.inf]])),
            "has 2 values that are NaN or infinite.* row 2",
        ),
    ],
)
def test_npy_that_is_no_points(tmp_path, capsys, data, message):
    write(tmp_path, "a.npy", data)
    with pytest.raises(InputError, match=message) as e:
        read_points(["a.npy"], tmp_path)
    assert "a.npy" in str(e.value)
    assert "\n" not in str(e.value)
    assert "unpickled" not in capsys.readouterr().out


def test_files_that_do_not_fit(tmp_path):
    write(tmp_path, "a.csv", "1,2\n")
    write(tmp_path, "b.npy", npy(np.zeros((1, 3))))
    write(tmp_path, "c.txt", "1,2\n")
    (tmp_path / "sub").mkdir()
    for files, message in (
        (["a.csv", "b.npy"], r"b.npy has 3 columns and .*a.csv has 2; give files with the same"),
        (["c.txt"], "c.txt is neither .npy nor .csv"),
        (["none.csv"], "there is no file 'none.csv'"),
        (["*.parquet"], r"there is no file '\*.parquet'"),
        (["sub"], "'sub' is a folder"),
        ([], "no files of points are named"),
    ):
        with pytest.raises(InputError, match=message):
            read_points(files, tmp_path)


def test_an_npy_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"a.npy cannot be read \(No such file or directory\)"):
        read_npy(tmp_path / "a.npy")


# --- checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), "has 1 axes; give 2"),
        (np.zeros((3, 1, 1)), "has 3 axes"),
        (np.zeros((0, 2)), "is empty"),
        (np.zeros((3, 0)), "is empty"),
        ([[1, 2], [np.nan, 3], [np.inf, np.nan]], "has 3 values that are NaN or infinite.* row 2;"),
        ([[1.0, 2.0]], r"fewer than 2 different points \(1 in all\)"),
        ([[1.0], [1.0], [1.0]], r"fewer than 2 different points \(3 in all\)"),
        ([[1, 5.0], [2, 5], [4, 5]], "no spread in column 2: all 3 values are equal; leave"),
        ([[0.1, 1], [0.1, 2], [0.1, 9]], "no spread in column 1"),
        ([[1.0, 2], [2, 4]], "has 2 points in 2 columns.* give at least 3 points"),
        ([[1, 0.0], [1, 1], [1 + 2**-52, 7]], "in column 1: its values differ by rounding"),
        ([[1.0], [1 + 2**-52]], "in column 1: its values differ by rounding alone"),
        (np.outer(range(9), range(1, 9)), r"columns 1, 2, 3, 4, 5, 6, ... depend.*rank 1 of 8"),
        ([[1.0, 2], [2, 4], [3, 6]], r"columns 1, 2 depend.*\(rank 1 of 2\)"),
    ],
)
def test_points_to_which_no_gaussian_fits(points, message):
    with pytest.raises(InputError, match=message) as e:
        check_points(np.asarray(points), "the world")
    assert str(e.value).startswith("the world ")


@pytest.mark.parametrize("n", [8, 300, 20_000])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1e6, 1e9])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e200])
def test_a_column_that_follows_from_others(n, offset, scale):
    rng = np.random.default_rng(n)
    points = scale * (rng.standard_normal((n, 4)) + offset)
    points[:, 3] = 0.3 * points[:, 0] - 7 * points[:, 2] + scale * 0.1
    with pytest.raises(InputError, match=r"columns 1, 3, 4 depend .*\(rank 3 of 4\)"):
        check_points(points, "x")
    points[:, 1] = 2 * points[:, 0]
    with pytest.raises(InputError, match=r"columns 1, 2, 3, 4 depend .*\(rank 2 of 4\)"):
        check_points(points, "x")


@pytest.mark.parametrize(
    "points",
    [
        [[0.0], [1.0]],
        [[1e6, 0], [1e6 + 1e-6, 1], [1e6 + 1e-6, 2]],
        [[0.0, 0], [1, 0], [0, 1]],
        [[0, 0], [0, 0], [1, 0], [0, 1]],  # integers, and points that are there twice
        [[1e300, 1e-300], [-1e300, 1e-300], [0, 2e-300]],
        [[1e9, 0], [1e9 + 1e-3, 0], [1e9, 1]],  # far away, with little spread
    ],
)
def test_points_to_which_a_gaussian_fits(points):
    check_points(np.asarray(points), "x")


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6, 1e-8])
def test_little_spread_is_some_spread(noise):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((1000, 3)) * np.array([1.0, 1e6, 1e-12]) + np.array([1, 0, 1e-11])
    points[:, 1] = 1e6 * (points[:, 0] + noise * rng.standard_normal(1000))
    check_points(points, "x")


def test_as_many_points_as_it_takes():
    points = np.random.default_rng(0).standard_normal((6, 5))
    check_points(points, "x")
    with pytest.raises(InputError, match="has 5 points in 5 columns"):
        check_points(points[:5], "x")
