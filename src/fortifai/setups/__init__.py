"""One file for each kind of data: what it takes to run an experiment on it.

To add a family on data that is here already, name it in that file; to add a kind of data, write a
file with `read` and `load`, and name it below.
"""

from __future__ import annotations

from pathlib import Path

from fortifai.config import AnyExperiment, ImagesExperiment, LanguageExperiment, PointsExperiment
from fortifai.setups.setup import Ground, Inputs, Shared

__all__ = ["Ground", "Inputs", "Shared", "load", "read"]


def read(config: AnyExperiment, root: Path) -> Inputs:
    """Read and check everything that can be checked before work starts; write nothing.

    Args:
        config: The resolved configuration.
        root: Folder that its file names are relative to.

    Raises:
        InputError: Anything about the data or the model is wrong.
    """
    # each here, so that a Gaussian need not wait for transformers
    if isinstance(config, PointsExperiment):
        from fortifai.setups import points

        return points.read(config, root)
    if isinstance(config, ImagesExperiment):
        from fortifai.setups import images

        return images.read(config, root)
    from fortifai.setups import text

    assert isinstance(config, LanguageExperiment)
    return text.read(config, root)


def load(config: AnyExperiment, folder: Path) -> Shared:
    """Read back what `Inputs.write` wrote into `folder`."""
    if isinstance(config, PointsExperiment):
        from fortifai.setups import points

        return points.load(config, folder)
    if isinstance(config, ImagesExperiment):
        from fortifai.setups import images

        return images.load(config, folder)
    from fortifai.setups import text

    assert isinstance(config, LanguageExperiment)
    return text.load(config, folder)
