"""Which kernels the losses on hidden states use between the matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fortifai.errors import InputError
from fortifai.losses.chunks import Softmax, softmax

_in_use: Softmax = softmax


def softmax_in_use() -> Softmax:
    """The softmax that losses called from now on use, in their backward, too."""
    return _in_use


@contextlib.contextmanager
def triton_kernels() -> Iterator[None]:
    """Inside, softmax and gradient of the logits are Triton kernels, on a GPU.

        with triton_kernels():
            trainer.train()

    Plain PyTorch passes a chunk of logits through memory some seven times there; these read it
    twice and write it once. They are not the default: they have been tested by Triton's interpreter
    and measured on no device yet. In all threads of the process, as autograd has its own.

    Raises:
        InputError: Triton is not installed. A loss inside raises it for hidden states on the CPU,
            where only Triton's interpreter (TRITON_INTERPRET=1) could serve them.
    """
    global _in_use
    try:
        from fortifai.losses import triton_softmax
    except ImportError as error:
        raise InputError(
            f"triton_kernels() needs Triton, which cannot be imported ({error}); install it "
            "(pip install triton; PyTorch for CUDA brings it), or leave triton_kernels() out"
        ) from error
    before = _in_use
    _in_use = triton_softmax.softmax
    try:
        yield
    finally:
        _in_use = before
