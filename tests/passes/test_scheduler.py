"""The active scheduler: what is said of a slow one."""

from __future__ import annotations

import warnings

import dask
import pytest

from daskkm.passes import scheduler


def test_chosen_scheduler_of_processes_is_advised_against_once() -> None:
    scheduler._warn_of_processes.cache_clear()
    with dask.config.set(scheduler="processes"):
        with pytest.warns(UserWarning, match=r"scheduler='threads'.*LocalCluster"):
            scheduler.chosen()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.chosen()
