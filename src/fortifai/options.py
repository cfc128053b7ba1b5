"""What all parts of an experiment's YAML have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field

from fortifai.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]


class Options(BaseModel):
    """The settings of a thing: unknown keys are errors, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def kind_of(option: type[Options]) -> str:
    """The name that a YAML gives it: the default of its field ``kind``."""
    field = option.model_fields.get("kind")
    kind = field.default if field else None
    if not isinstance(kind, str):
        raise InputError(
            f"{option.__name__} has no kind; give it a field such as `kind: Literal['mine'] = "
            "'mine'`"
        )
    return kind


def one_of(*options: type[Options], more: Sequence[type[Options]] = ()) -> Any:
    """The type of a key that takes one of several options, told apart by their ``kind``.

    Args:
        options: Those that are always there.
        more: Those of plugins.

    Raises:
        InputError: Two of them have one kind, or one has none.
    """
    found: dict[str, type[Options]] = {}
    for option in (*options, *more):
        other = found.setdefault(kind_of(option), option)
        if other is not option:
            both = " and ".join(f"{one.__module__}.{one.__name__}" for one in (option, other))
            raise InputError(
                f"{both} are both of kind {kind_of(option)!r}; give one of them another"
            )
    kinds = tuple(found.values())
    if len(kinds) == 1:
        return kinds[0]
    return Annotated[Union[kinds], Field(discriminator="kind")]  # noqa: UP007 (of a tuple)
