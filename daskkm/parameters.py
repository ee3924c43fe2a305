"""Check parameters of public functions and convert them to Python's own types."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    # Types that seed draws.
    RandomState = int | np.random.RandomState | np.random.Generator | None


def as_flag(name: str, value: Any) -> bool:
    """Return a bool; raise ParameterError for any other type."""
    if not isinstance(value, bool | np.bool_):
        msg = f"{name}: {value!r} is not valid. Give True or False"
        raise ParameterError(msg)
    return bool(value)


def as_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return one of the choices; raise ParameterError for any other value."""
    choices = list(choices)
    if not (isinstance(value, str) and value in choices):
        msg = f"{name}: {value!r} is not valid. Use one of {', '.join(choices)}"
        raise ParameterError(msg)
    return str(value)


def as_integer(name: str, value: Any, least: int) -> int:
    """Return an int of at least `least`; raise ParameterError for less, True or 2.0."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{name}: {value!r} is not valid. Give an integer of at least {least}"
        raise ParameterError(msg)
    return int(value)


def as_number(name: str, value: Any) -> float:
    """Return a finite float of at least 0; raise ParameterError for any other value, or True."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else np.nan
    if not 0 <= number < np.inf:
        msg = f"{name}: {value!r} is not valid. Give a finite number of at least 0"
        raise ParameterError(msg)
    return float(number)


def as_array(name: str, value: Any) -> NDArray[np.float64]:
    """Return a float64 copy of an array; raise ParameterError if masked or not real."""
    try:
        if not (np.ma.isMaskedArray(value) or np.iscomplexobj(value)):
            return np.array(value, np.float64, order="C")
        problem: object = "it is masked or complex"
    except (TypeError, ValueError) as error:
        problem = error
    msg = f"{name}: not an array of real numbers ({problem}). Give k rows of d numbers"
    raise ParameterError(msg)


def as_seed(random_state: RandomState) -> int:
    """Return a seed, or draw a seed from a generator; raise ParameterError for other types."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if not isinstance(random_state, Integral) or isinstance(random_state, bool) or random_state < 0:
        msg = (
            f"random_state: {random_state!r} is not valid. Give an integer of at least 0, None, or "
            "a RandomState or Generator of NumPy"
        )
        raise ParameterError(msg)
    return int(random_state)
