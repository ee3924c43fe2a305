"""Files and pictures: whole or not at all."""

from __future__ import annotations

import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daskkm.errors import ResultsError
from daskkm.report import contact_sheet, results


def test_centroids_are_rounded_and_clipped_to_pixels(tmp_path: Path) -> None:
    centroids = np.array([[0.4, 0.6, 254.6, 255.0], [-3.0, 300.0, 1.5, 2.5]])
    pictures = results.to_pixels(centroids, (2, 2))
    assert pictures.tolist() == [[[0, 1], [255, 255]], [[0, 255], [2, 2]]]
    results.save_centroids(tmp_path, pictures)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [
        "centroid1.png",
        "centroid2.png",
    ]
    with Image.open(tmp_path / "2" / "centroid2.png") as image:
        assert np.asarray(image).tolist() == pictures[1].tolist()


def test_rgb_centroids(tmp_path: Path) -> None:
    pictures = results.to_pixels(np.arange(24.0).reshape(2, 12), (2, 2, 3))
    results.save_centroids(tmp_path, pictures)
    with Image.open(tmp_path / "2" / "centroid1.png") as image:
        assert image.mode == "RGB"
        assert np.asarray(image).tolist() == pictures[0].tolist()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    results.save_json(path, {"a": 1})
    with pytest.raises(TypeError):
        results.save_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    match = "cannot be written"
    with pytest.raises(ResultsError, match=match):
        results.check_writable(tmp_path / "file", [])
    with pytest.raises(ResultsError, match=match):
        results.check_writable(tmp_path / "file" / "out", [])
    (tmp_path / "3").touch()
    with pytest.raises(ResultsError, match="3 in it is not a folder"):
        results.check_writable(tmp_path, [2, 3])
    (tmp_path / "3").unlink()
    for name in ("sweep.json", "contact_sheet.png", "3/centroid2.png"):
        (tmp_path / name).mkdir(parents=True)
        with pytest.raises(ResultsError, match=rf"{Path(name).name} in it is a folder"):
            results.check_writable(tmp_path, [2, 3])
        (tmp_path / name).rmdir()
    with pytest.raises(ResultsError, match=match):
        results.save_json(tmp_path / "none" / "sweep.json", {})
    with pytest.raises(ResultsError, match=match):
        results.save_centroids(tmp_path / "file", np.zeros((1, 2, 2), np.uint8))


def test_a_folder_of_earlier_results_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "3").mkdir()
    temporary = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:  # noqa: A002 (its name)
        if dir.name == "3":
            raise PermissionError(errno.EACCES, "Permission denied")
        return temporary(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    results.check_writable(tmp_path, [2])
    with pytest.raises(ResultsError, match=r"3: results cannot be written \(Permission denied\)"):
        results.check_writable(tmp_path, [2, 3])


@pytest.mark.parametrize("shape", [(16, 16), (3, 5), (200, 120), (8, 8, 3)])
def test_the_contact_sheet_shows_every_centroid_biggest_first(shape: tuple[int, ...]) -> None:
    values = {1: [50], 3: [60, 70, 80], 20: list(range(100, 120))}
    centroids = {
        k: np.stack([np.full(shape, value, np.uint8) for value in v]) for k, v in values.items()
    }
    counts = {1: [9], 3: [5, 7, 6], 20: list(range(20))}
    image = np.asarray(contact_sheet.contact_sheet(centroids, counts).convert("RGB"))
    grey = image[(image == image[..., :1]).all(axis=-1)][:, 0]
    found = np.bincount(grey, minlength=256)
    area = shape[0] * shape[1] * max(1, 96 // shape[0]) ** 2
    for v in values.values():
        assert (found[v] >= area).all()
    columns = [int(np.argwhere(image[..., 0] == value)[0, 1]) for value in (70, 80, 60)]
    assert columns == sorted(columns)
