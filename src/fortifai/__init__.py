"""fortifai: train on data that models wrote, and keep what was known.

Losses that let a model learn less from what it is sure of, the recursive-training experiment that
shows what they do, and measures of collapse. Importing this needs torch alone.
"""

from fortifai import losses
from fortifai.losses import *  # noqa: F403 - what `losses.__all__` names

__version__ = "0.1.0"

__all__ = ["__version__"]
__all__ += losses.__all__
