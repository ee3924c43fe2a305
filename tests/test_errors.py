"""Errors: one line that names the object, the problem and a hint."""

from __future__ import annotations

import pytest

from daskkm.errors import DaskkmError, ParameterError, StoreError, translate_errors


def test_translate_errors_of_the_system_names_object_problem_and_hint() -> None:
    with (
        pytest.raises(StoreError) as caught,
        translate_errors(StoreError, "t.zarr", "not written", "Make room", options=("out",)),
    ):
        raise OSError(28, "No space left on device", "/t.zarr/c")
    assert str(caught.value) == "t.zarr: not written (No space left on device). Make room (out)"
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("error", [ParameterError("k is 0"), KeyError("k")])
def test_translate_errors_of_daskkm_or_other_types_pass_through(error: Exception) -> None:
    with (
        pytest.raises(type(error)) as caught,
        translate_errors(DaskkmError, "t.zarr", "not read", "Try again", catch=ValueError),
    ):
        raise error
    assert caught.value is error
