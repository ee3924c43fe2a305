"""k-means over image tiles that do not fit in memory: exact, on dask.

Public names load on first use, so that ``import daskkm`` costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskkm.assessment import assess
    from daskkm.errors import (
        CheckpointError,
        CorruptChunkError,
        DaskkmError,
        DtypeError,
        FitError,
        ModelError,
        ParameterError,
        ResultsError,
        SchedulerError,
        SheetError,
        StoreError,
        SumOverflowError,
    )
    from daskkm.estimator import KMeans, load_model
    from daskkm.fit import SweepResult, fit_sweep
    from daskkm.ingest import ingest
    from daskkm.label import label
    from daskkm.model import FittedModel
    from daskkm.quality import Quality, knee
    from daskkm.store import TileStore, open_store
    from daskkm.verify import verify

_HOME = {
    "CheckpointError": "errors",
    "CorruptChunkError": "errors",
    "DaskkmError": "errors",
    "DtypeError": "errors",
    "FitError": "errors",
    "FittedModel": "model",
    "KMeans": "estimator",
    "ModelError": "errors",
    "ParameterError": "errors",
    "Quality": "quality",
    "ResultsError": "errors",
    "SchedulerError": "errors",
    "SheetError": "errors",
    "StoreError": "errors",
    "SumOverflowError": "errors",
    "SweepResult": "fit",
    "TileStore": "store",
    "assess": "assessment",
    "fit_sweep": "fit",
    "ingest": "ingest",
    "knee": "quality",
    "label": "label",
    "load_model": "estimator",
    "open_store": "store",
    "verify": "verify",
}

__all__ = [
    "CheckpointError",
    "CorruptChunkError",
    "DaskkmError",
    "DtypeError",
    "FitError",
    "FittedModel",
    "KMeans",
    "ModelError",
    "ParameterError",
    "Quality",
    "ResultsError",
    "SchedulerError",
    "SheetError",
    "StoreError",
    "SumOverflowError",
    "SweepResult",
    "TileStore",
    "assess",
    "fit_sweep",
    "ingest",
    "knee",
    "label",
    "load_model",
    "open_store",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # which takes longer than all else here

        globals()[name] = version(__name__)
        return globals()[name]
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `daskkm.ingest` and its like functions, though the commands' modules are so called.

    Importing a submodule binds it as an attribute of its package, over whatever was there.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
