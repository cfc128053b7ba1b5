"""Where two groups of values part."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike


def gaussian_crossing(values: ArrayLike) -> float | None:
    """Where the weighted densities of two Gaussians fitted to `values` cross between their means.

    The fit is by EM from the lower and the upper quarter, without chance.

    Args:
        values: Any shape; at most 20,000 of them, evenly spaced in order, are used.

    Returns:
        The x between the means with w0 N(x; m0, v0) = w1 N(x; m1, v1), or None where there is
        none: all values are equal, or one density lies above the other all the way.
    """
    from sklearn.mixture import GaussianMixture  # here: it takes half a second to import

    # So many quantiles stand for any number of values: leaving out the others moves the crossing by
    # a thousandth of the spread or less, and EM costs as much as there are values.
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    step = -(-len(x) // 20_000) or 1
    x = x[step // 2 :: step]
    if len(x) < 2 or x[0] == x[-1]:
        return None
    starts = np.array([x[len(x) // 4], x[3 * len(x) // 4]])
    starts = np.array([x[0], x[-1]]) if starts[0] == starts[1] else starts
    # EM creeps where the two overlap: at a gain of 1e-4 a step it may still be a tenth of the
    # spread away, at 1e-8 a thousandth.
    fitted = GaussianMixture(2, means_init=starts[:, None], random_state=0, max_iter=5000, tol=1e-8)
    with warnings.catch_warnings():
        # not settled after 5000 steps: two Gaussians on one hump, and any place is as good
        warnings.simplefilter("ignore")
        fitted.fit(x[:, None])
    order = np.argsort(fitted.means_[:, 0])
    w, m = fitted.weights_[order], fitted.means_[order, 0]
    v = fitted.covariances_[order, 0, 0]
    # log w0 N0 - log w1 N1 = a x^2 + b x + c
    a = 0.5 / v[1] - 0.5 / v[0]
    b = m[0] / v[0] - m[1] / v[1]
    c = 0.5 * (m[1] ** 2 / v[1] - m[0] ** 2 / v[0] + np.log(v[1] / v[0])) + np.log(w[0] / w[1])
    roots = np.roots([a, b, c])
    between = [float(r.real) for r in roots if r.imag == 0 and m[0] <= r.real <= m[1]]
    return between[0] if between else None
