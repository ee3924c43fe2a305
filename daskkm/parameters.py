"""Parameters of public functions: checked, and returned as Python's own types."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    # What draws can be seeded by.
    RandomState = int | np.random.RandomState | np.random.Generator | None


def as_flag(name: str, value: Any) -> bool:
    """Return a parameter that is True or False as a bool.

    Parameters
    ----------
    name : str
        Name of the parameter, for the message.
    value : object

    Returns
    -------
    bool

    Raises
    ------
    ParameterError
        If it is anything else: a text such as "no" would count as True.
    """
    if not isinstance(value, bool | np.bool_):
        msg = f"{name} is {value!r}; give True or False"
        raise ParameterError(msg)
    return bool(value)


def as_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return a parameter that is one of some texts.

    Raises
    ------
    ParameterError
        If it is none of them.
    """
    choices = list(choices)
    if not (isinstance(value, str) and value in choices):
        msg = f"{name} is {value!r}; use one of {', '.join(choices)}"
        raise ParameterError(msg)
    return str(value)


def as_integer(name: str, value: Any, least: int) -> int:
    """Return a parameter that is an integer of at least so much as an int.

    Raises
    ------
    ParameterError
        If it is less, or no integer; True and 2.0 are none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{name} is {value!r}; give an integer of at least {least}"
        raise ParameterError(msg)
    return int(value)


def as_number(name: str, value: Any) -> float:
    """Return a parameter that is a finite number of at least 0 as a float.

    Raises
    ------
    ParameterError
        If it is less, not finite, or no number; True is none.
    """
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else np.nan
    if not 0 <= number < np.inf:
        msg = f"{name} is {value!r}; give a finite number of at least 0"
        raise ParameterError(msg)
    return float(number)


def as_array(name: str, value: Any) -> NDArray[np.float64]:
    """Return a parameter that is an array of numbers as a float64 array of its own.

    Raises
    ------
    ParameterError
        If it is no such array, or masked or complex, which a conversion would pass over.
    """
    try:
        if not (np.ma.isMaskedArray(value) or np.iscomplexobj(value)):
            return np.array(value, np.float64, order="C")
        problem: object = "it is masked or complex"
    except (TypeError, ValueError) as error:
        problem = error
    msg = f"{name} is not an array of real numbers ({problem}); give k rows of d numbers"
    raise ParameterError(msg)


def as_seed(random_state: RandomState) -> int:
    """Return the seed that a random state stands for; one of NumPy's generators draws it.

    Parameters
    ----------
    random_state : int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    int

    Raises
    ------
    ParameterError
        If it is none of these, or negative.
    """
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if not isinstance(random_state, Integral) or isinstance(random_state, bool) or random_state < 0:
        msg = (
            f"random_state is {random_state!r}; give an integer of at least 0, None, or a "
            "RandomState or Generator of NumPy"
        )
        raise ParameterError(msg)
    return int(random_state)
