"""k-means over image tiles that do not fit in memory: exact, on dask.

Public names are imported on first use, so that ``import daskkm`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskkm.errors import (
        CheckpointError as CheckpointError,
        CorruptChunkError as CorruptChunkError,
        DaskkmError as DaskkmError,
        DtypeError as DtypeError,
        FitError as FitError,
        ImageError as ImageError,
        ModelError as ModelError,
        ParameterError as ParameterError,
        ResultsError as ResultsError,
        SchedulerError as SchedulerError,
        StoreError as StoreError,
        SumOverflowError as SumOverflowError,
    )
    from daskkm.images.ingest import create_store as create_store
    from daskkm.kmeans.assessment import assess as assess
    from daskkm.kmeans.estimator import KMeans as KMeans, load_model as load_model
    from daskkm.kmeans.metrics import Quality as Quality, knee as knee
    from daskkm.kmeans.model import FittedModel as FittedModel
    from daskkm.kmeans.pass_record import Pass as Pass
    from daskkm.kmeans.sweep import SweepResult as SweepResult, fit_sweep as fit_sweep
    from daskkm.storage.tile_store import TileStore as TileStore, open_store as open_store

_NAMES = {
    "errors": (
        *("CheckpointError", "CorruptChunkError", "DaskkmError", "DtypeError", "FitError"),
        *("ImageError", "ModelError", "ParameterError", "ResultsError", "SchedulerError"),
        *("StoreError", "SumOverflowError"),
    ),
    "images.ingest": ("create_store",),
    "kmeans.assessment": ("assess",),
    "kmeans.estimator": ("KMeans", "load_model"),
    "kmeans.metrics": ("Quality", "knee"),
    "kmeans.model": ("FittedModel",),
    "kmeans.pass_record": ("Pass",),
    "kmeans.sweep": ("SweepResult", "fit_sweep"),
    "storage.tile_store": ("TileStore", "open_store"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        value: Any = version(__name__)
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
