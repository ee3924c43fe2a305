"""Choice of the active scheduler."""

from __future__ import annotations

import warnings

import dask
import pytest

from daskkm.passes import scheduler


def test_find_scheduler_of_processes_warns_once() -> None:
    scheduler._warn_of_processes.cache_clear()
    with dask.config.set(scheduler="processes"):
        with pytest.warns(UserWarning, match=r"scheduler='threads'.*LocalCluster"):
            scheduler.find_scheduler()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.find_scheduler()
