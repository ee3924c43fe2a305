"""Files of results, written atomically, and the contact sheet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from daskkm.errors import ResultsError
from daskkm.report import contact_sheet, results
from daskkm.storage import locks
from daskkm.storage.locations import LocalLocation, as_location

if TYPE_CHECKING:
    from pathlib import Path


def test_save_centroids_of_greyscale_writes_rounded_pixels(tmp_path: Path) -> None:
    centroids = np.array([[0.4, 0.6, 254.6, 255.0], [-3.0, 300.0, 1.5, 2.5]])
    pictures = results.to_pixels(centroids, (2, 2))
    assert pictures.tolist() == [[[0, 1], [255, 255]], [[0, 255], [2, 2]]]
    results.save_centroids(LocalLocation(tmp_path), pictures)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [
        "centroid1.png",
        "centroid2.png",
    ]
    with Image.open(tmp_path / "2" / "centroid2.png") as image:
        assert np.asarray(image).tolist() == pictures[1].tolist()


def test_save_centroids_of_rgb_writes_rgb(tmp_path: Path) -> None:
    pictures = results.to_pixels(np.arange(24.0).reshape(2, 12), (2, 2, 3))
    results.save_centroids(LocalLocation(tmp_path), pictures)
    with Image.open(tmp_path / "2" / "centroid1.png") as image:
        assert image.mode == "RGB"
        assert np.asarray(image).tolist() == pictures[0].tolist()


def test_save_json_with_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    results.save_json(LocalLocation(path), {"a": 1})
    with pytest.raises(TypeError):
        results.save_json(LocalLocation(path), {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_check_writable_of_file_raises_results_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (LocalLocation(tmp_path / "file"), LocalLocation(tmp_path / "file" / "out")):
        with pytest.raises(ResultsError, match=f"{out}: results cannot be written"):
            results.check_writable(out)
    results.check_writable(LocalLocation(tmp_path / "new" / "out"))
    assert not list((tmp_path / "new" / "out").iterdir())


def test_save_functions_without_folder_raise_results_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"sweep\.json: results cannot be written"):
        results.save_json(LocalLocation(tmp_path / "file" / "sweep.json"), {})
    with pytest.raises(ResultsError, match=r"file/1/centroid1\.png: results cannot be written"):
        results.save_centroids(LocalLocation(tmp_path / "file"), np.zeros((1, 2, 2), np.uint8))
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(ResultsError, match=r"sweep\.json: results cannot be written"):
        results.save_json(LocalLocation(tmp_path / "sweep.json"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "sweep.json"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_lock_folder_of_second_sweep_raises_results_error(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LEASE_SECONDS", 0.6)
    out = as_location(f"{scheme}://{tmp_path}")
    with (
        results.lock_folder(out),
        pytest.raises(ResultsError, match="locked by another sweep"),
        results.lock_folder(out),
    ):
        pass
    with results.lock_folder(out):
        pass


@pytest.mark.parametrize("shape", [(16, 16), (3, 5), (200, 120), (8, 8, 3)])
def test_draw_contact_sheet_shows_every_centroid_biggest_first(shape: tuple[int, ...]) -> None:
    values = {1: [50], 3: [60, 70, 80], 20: list(range(100, 120))}
    centroids = {
        k: np.stack([np.full(shape, value, np.uint8) for value in v]) for k, v in values.items()
    }
    counts = {1: [9], 3: [5, 7, 6], 20: list(range(20))}
    image = np.asarray(contact_sheet.draw_contact_sheet(centroids, counts).convert("RGB"))
    grey = image[(image == image[..., :1]).all(axis=-1)][:, 0]
    found = np.bincount(grey, minlength=256)
    area = shape[0] * shape[1] * max(1, 96 // shape[0]) ** 2
    for v in values.values():
        assert (found[v] >= area).all()
    columns = [int(np.argwhere(image[..., 0] == value)[0, 1]) for value in (70, 80, 60)]
    assert columns == sorted(columns)
