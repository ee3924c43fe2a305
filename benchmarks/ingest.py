"""Images to a store, beside only decoding the same files one after another with Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import daskkm
from benchmarks import schedulers
from benchmarks.timing import Case, Outcome, interleaved

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import NDArray

    from benchmarks.timing import Work

TILE = 16


def measure(
    folder: Path,  # noqa: ARG001
    *,
    suffix: str,
    images: int,
    pixels: int,
    rounds: int,
) -> list[Case]:
    """Time the decoding of files, and their ingest by one and two threads or processes."""
    with TemporaryDirectory() as name:
        place = Path(name)
        files = write_images(place / "images", suffix, images, pixels)

        def decode() -> Outcome:
            for file in files:
                with Image.open(file) as image:
                    np.asarray(image)
            return Outcome()

        def ingest() -> Outcome:
            with warnings.catch_warnings(), TemporaryDirectory(dir=place) as store:
                warnings.simplefilter("ignore")  # the pixels that fill no tile
                tiles = len(daskkm.create_store(place / "images", f"{store}/t.zarr", tile=TILE))
            return Outcome(said={"tiles": tiles})

        def on_threads(n: int) -> Work:
            def work() -> Outcome:
                with schedulers.threads(n):
                    return ingest()

            return work

        def on(client: Client) -> Work:
            def work() -> Outcome:
                with client.as_current():
                    return ingest()

            return work

        with schedulers.processes(1) as (_, one), schedulers.processes(2) as (_, two):
            sides = {
                "decoding alone": decode,
                "daskkm, one thread": on_threads(1),
                "daskkm, two threads": on_threads(2),
                "daskkm, one process": on(one),
                "daskkm, two processes": on(two),
            }
            found = interleaved(sides, rounds)
        n_bytes = sum(file.stat().st_size for file in files)
    sizes = {"images": images, "pixels": f"{pixels} x {pixels}", "bytes": n_bytes, "rounds": rounds}
    what = f"{images} images of {pixels} x {pixels}, {suffix[1:].upper()}"
    return [Case(what, "threads, or processes of a LocalCluster", "decoding alone", found, sizes)]


def write_images(folder: Path, suffix: str, n: int, side: int) -> list[Path]:
    """Write greyscale images as of a scanner: slow shades and some noise."""
    folder.mkdir()
    files = [folder / f"image_{i}{suffix}" for i in range(n)]
    for i, file in enumerate(files):
        Image.fromarray(draw(i, side)).save(file)
    return files


def draw(seed: int, side: int) -> NDArray[np.uint8]:
    """Return the pixels of an image, (side, side)."""
    y, x = np.mgrid[:side, :side]
    shade = 128 + 60 * np.sin(x / 37 + seed) + 50 * np.cos(y / 53)
    noise = np.random.default_rng(seed).normal(0, 3, (side, side))
    pixels: NDArray[np.uint8] = np.clip(shade + noise, 0, 255).astype(np.uint8)
    return pixels
