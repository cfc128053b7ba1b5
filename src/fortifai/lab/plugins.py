"""Parts from outside the package: weights, cures, steps after a fit, regimes, corpora, measures.

A plugin is a module with a list ``PLUGIN`` of such parts. A YAML names them by their ``kind``, and
measures by their name; it is the command line that says which modules are imported, never a YAML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from fortifai.errors import InputError
from fortifai.lab.after_fit import AfterFit
from fortifai.lab.cures import Cure
from fortifai.lab.measures import Measure
from fortifai.lab.regimes import Regime
from fortifai.options import Options
from fortifai.weights import Weight

LIST = "PLUGIN"


class Corpus(Options):
    """Where an experiment's data come from, told by `kind`.

    Each kind of data has a subclass that says what one must do: `fortifai.text.sources.TextCorpus`,
    `fortifai.points.sources.PointSource`, `fortifai.images.sources.ImageSource`.
    """

    kind: str
    data: ClassVar[str]


@dataclasses.dataclass(frozen=True)
class Plugins:
    """What the modules list.

    Attributes:
        names: Of the modules.
        weights: Subclasses of `fortifai.weights.Weight`.
        measures: Functions made measures by `fortifai.lab.measures.measure`.
        cures: Subclasses of `fortifai.lab.cures.Select` or ``Edit``.
        after_fit: Subclasses of `fortifai.lab.after_fit.AfterFit`.
        regimes: Subclasses of `fortifai.lab.regimes.Regime`.
        corpora: Subclasses of `Corpus`.
    """

    names: tuple[str, ...] = ()
    weights: tuple[type[Weight], ...] = ()
    measures: tuple[Measure, ...] = ()
    cures: tuple[type[Cure], ...] = ()
    after_fit: tuple[type[AfterFit], ...] = ()
    regimes: tuple[type[Regime], ...] = ()
    corpora: tuple[type[Corpus], ...] = ()

    def sums(self) -> dict[str, str]:
        """SHA-256 of each module's own file, which tells whether a run goes on with another one."""
        paths = {name: getattr(sys.modules.get(name), "__file__", None) for name in self.names}
        return {
            name: hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
            for name, path in paths.items()
        }


NONE = Plugins()


def load(names: Sequence[str]) -> Plugins:
    """Import modules, from the working directory too, and take what they list.

    Raises:
        InputError: A module is not there or cannot be imported, or it lists something else.
    """
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(names):
        for part in _listed(name):
            found.setdefault(_sort(part, name), []).append(part)
    return Plugins(tuple(dict.fromkeys(names)), **{k: tuple(v) for k, v in found.items()})


def _listed(name: str) -> Sequence[Any]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may raise whatever it likes
        raise InputError(
            f"--plugin {name}: the module could not be imported ({type(error).__name__}: {error}); "
            "give the name of a Python module that is installed or lies in the working directory"
        ) from error
    parts = getattr(module, LIST, None)
    if not isinstance(parts, (list, tuple)):
        raise InputError(
            f"--plugin {name}: the module has no list {LIST}; write one with its weights, measures,"
            " cures, regimes and corpora"
        )
    return parts


def _check_whole(part: type[Any], name: str) -> None:
    """Refuse a class that lacks what it is asked for in a run."""
    lacking = sorted(getattr(part, "__abstractmethods__", ()))
    if issubclass(part, Weight) and not any("__call__" in vars(base) for base in part.__mro__):
        lacking = ["__call__"]
    if issubclass(part, Corpus) and not hasattr(part, "data"):
        raise InputError(
            f"--plugin {name}: {part.__name__} is a Corpus of no kind of data; derive it from "
            "TextCorpus, PointSource or ImageSource"
        )
    if lacking:
        raise InputError(
            f"--plugin {name}: {part.__name__} has no method {' and no method '.join(lacking)}; "
            f"write it as {part.__mro__[1].__name__} says"
        )


def _sort(part: Any, name: str) -> str:
    if isinstance(part, Measure):
        return "measures"
    for key, base in (
        ("weights", Weight),
        ("cures", Cure),
        ("after_fit", AfterFit),
        ("regimes", Regime),
        ("corpora", Corpus),
    ):
        if isinstance(part, type) and issubclass(part, base):
            _check_whole(part, name)
            return key
    raise InputError(
        f"--plugin {name}: {LIST} lists {part!r}, which is none of a Weight, a Cure, an "
        "AfterFit, a Regime, a Corpus (classes) and a measure"
    )
