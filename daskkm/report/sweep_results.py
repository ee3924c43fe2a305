"""Results of a sweep: models, pictures and the content of sweep.json."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from daskkm.kmeans.metrics import knee
from daskkm.report import contact_sheet, results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daskkm.kmeans.assessment import Assessment
    from daskkm.kmeans.metrics import Quality
    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.locations import Location
    from daskkm.storage.tile_store import TileStore


def save_models(
    out: Location,
    models: Mapping[int, FittedModel],
    tile: tuple[int, ...],
    params: Mapping[str, Any],
) -> None:
    """Write the models, pictures of the centroids, and the contact sheet."""
    # A sweep that is cut short here must not leave the summary of another sweep.
    for name in ("sweep.json", "contact_sheet.png"):
        results.remove_file(out / name)
    pictures = {k: results.to_pixels(m.cluster_centers_, tile) for k, m in models.items()}
    for k, model in models.items():
        results.save_centroids(out, pictures[k])
        settings = {"params": {"n_clusters": k, **params}}
        model.save(out / str(k) / "model.zarr", settings=settings)
    counts = {k: m.counts_.tolist() for k, m in models.items()}
    sheet = contact_sheet.draw_contact_sheet(pictures, counts)
    results.save_image(out / "contact_sheet.png", sheet)


def summarize(result: SweepResult, figures: Assessment, store: TileStore) -> dict[str, Any]:
    """Return the content of sweep.json, without the paths and settings of the command."""
    models = result.models
    return {
        "n_tiles": len(store),
        "n_features": math.prod(store.tile),
        "tile": list(store.tile),
        "passes": result.passes + figures.passes,
        "bytes_read": result.bytes_read + figures.bytes_read,
        "knee": knee({k: model.inertia_ for k, model in models.items()}),
        "models": [
            {
                "k": k,
                "inertia": model.inertia_,
                "n_iter": model.n_iter_,
                "converged": model.converged_,
                "restart": model.restart_,
                "sizes": model.counts_.tolist(),
                **_select_figures(figures.qualities.get(k)),
            }
            for k, model in models.items()
        ],
    }


def _select_figures(quality: Quality | None) -> dict[str, float | None]:
    """Return the measured figures by name; None for undefined figures."""
    if quality is None:
        return {}
    names = ["calinski_harabasz", "davies_bouldin", "silhouette"]
    if quality.purity is not None:
        names += ["purity", "adjusted_rand", "normalized_mutual_info"]
    return {name: getattr(quality, name) for name in names}
