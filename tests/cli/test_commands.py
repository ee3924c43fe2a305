"""Commands as users run them: files, output and exit status."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import daskkm
from daskkm.cli import main
from daskkm.cli.label import command as label_command
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import reason
from daskkm.images import find
from daskkm.kernels.dtypes import check_dtype, check_exact
from daskkm.kmeans import assessment
from daskkm.kmeans.model import FittedModel
from daskkm.report.results import _translate_errors as named
from daskkm.storage.locations import LocalLocation, as_location
from tests.conftest import ROOT
from tests.forks import Done

if TYPE_CHECKING:
    from collections.abc import Callable

    from daskkm.storage.tile_store import TileStore
    from tests.forks import Forks

    Run = Callable[..., Done]


THREADS = ("--scheduler", "threads")


def process(*args: str | Path, cwd: Path, **env: str) -> Done:
    """Run a module in an interpreter of its own, which takes three times as long as a fork."""
    command = [sys.executable, "-m", *map(str, args)]
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | env,
    )
    return Done(done.returncode, 0, done.stdout, done.stderr)


@pytest.fixture
def run(forked: Forks) -> Run:
    return forked.run


@pytest.fixture
def sweep(run: Run) -> Run:
    return partial(run, "sweep", "--scheduler", "threads", "--n-init", "2")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with ``images`` in it, as the defaults expect."""
    (tmp_path / "images").symlink_to(ROOT / "images")
    return tmp_path


def test_sweep_with_all_defaults_writes_models_and_figures(run: Run, home: Path) -> None:
    # An interval after which no line appears.
    done = run("sweep", cwd=home, env={"DASKKM_PROGRESS_SECONDS": "3600"})
    assert done.status == 0, done.stderr
    summary = json.loads((home / "centroids" / "sweep.json").read_text())
    assert summary.keys() == {
        *("store", "n_tiles", "n_features", "tile", "passes", "bytes_read", "settings", "models"),
        "knee",
    }
    assert (summary["store"], summary["n_tiles"], summary["n_features"]) == (
        "store/tiles.zarr",
        5610,
        256,
    )
    assert summary["tile"] == [16, 16]
    assert summary["bytes_read"] == 2 * 5610 * 256  # by the fit, which caches, and for figures
    assert summary["settings"] == {
        "init": "k-means++", "n_init": 16, "max_iter": 300, "tol": 1e-4, "seed": 0,
    }  # fmt: skip
    store = daskkm.open_store(home / "store" / "tiles.zarr")
    result = daskkm.fit_sweep(store.features(), range(3, 8), random_state=0)
    assert summary["passes"] == result.passes + 1
    assert summary["knee"] == daskkm.knee({k: m.inertia_ for k, m in result.models.items()}) == 5
    found = daskkm.assess(store, result.models)
    for k, entry in zip(range(3, 8), summary["models"], strict=True):
        model = result.models[k]
        assert entry == {
            "k": k,
            "inertia": model.inertia_,
            "n_iter": model.n_iter_,
            "converged": True,
            "restart": model.restart_,
            "sizes": model.counts_.tolist(),
            "calinski_harabasz": found[k].calinski_harabasz,
            "davies_bouldin": found[k].davies_bouldin,
            "silhouette": found[k].silhouette,
        }
        folder = home / "centroids" / str(k)
        assert {path.name for path in folder.iterdir()} == {
            *(f"centroid{i}.png" for i in range(1, k + 1)),
            "model.zarr",
        }
        saved = daskkm.load_model(folder / "model.zarr").fitted_model
        np.testing.assert_array_equal(saved.cluster_centers_, model.cluster_centers_)
        np.testing.assert_array_equal(saved.counts_, model.counts_)
        assert (saved.inertia_, saved.tile) == (model.inertia_, (16, 16))
        for i, centroid in enumerate(model.cluster_centers_, 1):
            with Image.open(folder / f"centroid{i}.png") as picture:
                assert (picture.mode, picture.size) == ("L", (16, 16))
                np.testing.assert_allclose(np.asarray(picture).ravel(), centroid, atol=0.5)
    with Image.open(home / "centroids" / "contact_sheet.png") as picture:
        assert min(picture.size) > 400
    # Progress is on standard error, results are on standard output.
    *dashboard, place, last = done.stderr.splitlines()
    assert place == "store/tiles.zarr: 5,610 tiles from 5 images"
    # Not always the first line: the port may be taken, which is said first.
    assert dashboard[-1].startswith("dashboard: http://127.0.0.1:")
    assert len(dashboard) <= 2
    assert last.startswith(f"pass {result.passes}: 0 of 80 models moving, ")
    table = done.stdout.splitlines()
    assert [line.split()[0] for line in table[1:6]] == ["3", "4", "5", "6", "7"]
    assert table[-2] == (
        "The curve of inertia has its knee at k = 5 among k = 3 to 7; "
        "another range of k can move it."
    )
    assert table[-1].startswith(
        f"{summary['passes']} passes, {summary['bytes_read'] / 1e6:.1f} MB read"
    )
    assert "look at centroids/contact_sheet.png" in table[-1]


def test_sweep_with_sheet_classes_reports_figures_of_classes(sweep: Run, home: Path) -> None:
    done = sweep("--k", "1,12", "--sheet-classes", cwd=home)
    assert done.status == 0, done.stderr
    head, one, twelve, *rest = done.stdout.splitlines()
    assert head.split()[4:10] == ["CH", "DB", "silh", "purity", "ARI", "NMI"]
    assert one.split() == [*one.split()[:4], *"---", "0.200", "0.000", "0.000", "5610"]
    assert twelve.endswith(" …")
    assert max(map(len, (head, one, twelve, *rest))) <= 100
    assert rest[1].startswith("purity, ARI (adjusted Rand) and NMI: more is better, 1 is perfect")
    assert "knee" not in done.stdout
    summary = json.loads((home / "centroids" / "sweep.json").read_text())
    assert summary["knee"] is None
    store = daskkm.open_store(home / "store" / "tiles.zarr")
    models = daskkm.fit_sweep(store, [1, 12], n_init=2, random_state=0).models
    found = daskkm.assess(store, models, classes=store.provenance()["image"])
    for entry in summary["models"]:
        for name in ("silhouette", "purity", "adjusted_rand", "normalized_mutual_info"):
            assert entry[name] == getattr(found[entry["k"]], name)


def test_sweep_without_quality_makes_no_pass_for_figures(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = daskkm.create_store(images, tmp_path / "s.zarr", tile=8)
    flags = [
        *("--store", str(tmp_path / "s.zarr"), "--out", str(tmp_path), "--scheduler", "threads"),
        *("--n-init", "1", "--k", "1-3", "--no-quality"),
    ]
    sweep_command.main(flags, standalone_mode=False)
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert summary["passes"] == daskkm.fit_sweep(store, [1, 2, 3], n_init=1, random_state=0).passes
    for entry in summary["models"]:
        assert entry.keys() == {"k", "inertia", "n_iter", "converged", "restart", "sizes"}
    head, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("k", "inertia", "iter", "converged"),
        *("tiles", "in", "each", "cluster"),
    ]
    assert not [line for line in rest if "silh" in line or "purity" in line]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--no-quality", "--sheet-classes"), "--sheet-classes: not used with --no-quality"),
        (("--store", "s.zarr", "--overwrite"), "--overwrite: not used with --store alone"),
        (("--store", "s.zarr", "--on-bad", "fail"), "--on-bad: not used with --store alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sweep_with_an_option_of_no_use_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.UsageError, match=message):
        sweep_command.main([*flags, "--scheduler", "threads"], standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_sweep_of_images_of_one_tile_leaves_classes_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        tile = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(tile).save(tmp_path / f"{i}.png")
    daskkm.create_store(tmp_path, tmp_path / "s.zarr", tile=8)
    flags = [
        *("--store", str(tmp_path / "s.zarr"), "--out", str(tmp_path), "--scheduler", "threads"),
        *("--n-init", "1", "--k", "2,3", "--sheet-classes"),
    ]
    sweep_command.main(flags, standalone_mode=False)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[4:8] == ["CH", "DB", "silh", "tiles"]
    line = "purity, ARI and NMI are left out: each image is one tile, a class of its own."
    assert line in table
    for entry in json.loads((tmp_path / "sweep.json").read_text())["models"]:
        assert "silhouette" in entry
        assert "purity" not in entry


def test_max_iter_of_commands_and_fits_has_one_default() -> None:
    (option,) = (each for each in sweep_command.params if each.name == "max_iter")
    of_fits = inspect.signature(daskkm.fit_sweep).parameters["max_iter"].default
    assert option.default == of_fits == daskkm.KMeans().max_iter == 300


def test_sweep_cut_short_leaves_no_figures_of_another(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daskkm.create_store(images, tmp_path / "s.zarr", tile=8)
    flags = [
        *("--images", str(images), "--store", str(tmp_path / "s.zarr"), "--out", str(tmp_path)),
        *("--scheduler", "threads", "--n-init", "1", "--k", "2"),
    ]
    sweep_command.main(flags, standalone_mode=False)
    before = daskkm.load_model(tmp_path / "2" / "model.zarr").cluster_centers_
    assert (tmp_path / "sweep.json").exists()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assessment, "assess_counted", interrupt)
    with pytest.raises(click.Abort):
        sweep_command.main([*flags, "--seed", "1"], standalone_mode=False)
    after = daskkm.load_model(tmp_path / "2" / "model.zarr").cluster_centers_
    assert (before != after).any()
    assert not (tmp_path / "sweep.json").exists()


def test_counts_of_one_are_singular(run: Run, sweep: Run, images: Path, tmp_path: Path) -> None:
    for name in ("s_1.png", "s_2.png"):
        (images / name).unlink()
    done = run("ingest", images, "--store", "s.zarr", "--tile", "32x24", *THREADS, cwd=tmp_path)
    assert done.stdout == "s.zarr: 1 tile of 32 x 24 from 1 image\n"
    done = sweep("--store", "s.zarr", "--k", "1", cwd=tmp_path)
    assert "s.zarr: 1 tile from 1 image\n" in done.stderr


def test_label_prints_the_sizes_of_its_own_run(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = daskkm.create_store(images, tmp_path / "s.zarr", tile=8)
    fits = [daskkm.fit_sweep(store, [3], random_state=seed, n_init=1) for seed in (0, 1)]
    ours, others = (fit.models[3] for fit in fits)
    assert sorted(ours.counts_) != sorted(others.counts_)
    ours.save(tmp_path / "m.zarr")
    write_labels = FittedModel.write_labels

    def then_another(model: FittedModel, store: daskkm.TileStore, **options: Any) -> Any:
        """Write labels, and at once those of another run."""
        counts = write_labels(model, store, **options)
        with monkeypatch.context() as patch:
            patch.setattr(FittedModel, "write_labels", write_labels)
            store.label(others)
        return counts

    monkeypatch.setattr(FittedModel, "write_labels", then_another)
    flags = ["--store", str(store.path), "--scheduler", "threads"]
    label_command.main([str(tmp_path / "m.zarr"), *flags], standalone_mode=False)
    assert f"clusters of {' '.join(map(str, ours.counts_))}, " in capsys.readouterr().out
    np.testing.assert_array_equal(store.labels(3), others.predict(store).compute())


@pytest.mark.faults
def test_sweep_of_changed_images_is_refused_until_overwritten(
    run: Run, sweep: Run, images: Path, tmp_path: Path
) -> None:
    daskkm.create_store(images, tmp_path / "s.zarr", tile=8)
    flags = ("--images", images, "--store", "s.zarr", "--k", "2", "--scheduler", "threads")
    done = sweep(*flags, cwd=tmp_path)
    assert "s.zarr: 30 tiles from 3 images" in done.stderr
    (images / "s_10.png").unlink()
    message = "s.zarr: the store has other content: 1 image removed (s_10.png). "
    assert_fails(sweep(*flags, cwd=tmp_path), message, "(--overwrite)")
    alone = sweep("--store", "s.zarr", *flags[4:], cwd=tmp_path)
    assert "s.zarr: 30 tiles from 3 images" in alone.stderr
    assert_fails(run("ingest", images, "--store", "s.zarr", *THREADS, cwd=tmp_path), message)
    # The size of tiles is that of the store before.
    assert "s.zarr: 18 tiles from 2 images" in sweep(*flags, "--overwrite", cwd=tmp_path).stderr
    assert daskkm.open_store(tmp_path / "s.zarr").tile == (8, 8)


@pytest.mark.faults
def test_sweep_of_images_that_have_grown_appends(
    run: Run, sweep: Run, images: Path, tmp_path: Path
) -> None:
    """Labels of the present tiles stay; a store with other changes stays as it is."""
    (images / "s_2.png").rename(tmp_path / "s_2.png")
    flags = ("--images", images, "--store", "s.zarr", "--k", "2")
    store = daskkm.create_store(images, tmp_path / "s.zarr", tile=8)
    store.label(daskkm.KMeans(n_clusters=2, random_state=0).fit(store))
    labels = store.labels(2).compute()
    (tmp_path / "s_2.png").rename(images / "s_2.png")
    done = run("ingest", images, "--store", "s.zarr", "--scheduler", "threads", cwd=tmp_path)
    assert_fails(done, "1 image added (s_2.png)", "append the images, or overwrite")
    done = sweep(*flags, cwd=tmp_path)
    assert "s.zarr: 30 tiles from 3 images" in done.stderr, done.stderr
    grown = daskkm.open_store(tmp_path / "s.zarr")
    assert [image.name for image in grown.images] == ["s_1.png", "s_10.png", "s_2.png"]
    with pytest.warns(UserWarning, match="6 of 30 tiles have no labels"):
        np.testing.assert_array_equal(grown.labels(2)[:24], labels)
    Image.new("L", (8, 8)).save(images / "s_2.png")
    Image.new("L", (8, 8)).save(images / "s_3.png")
    done = sweep(*flags, cwd=tmp_path)
    assert_fails(done, "1 image added (s_3.png), 1 image changed (s_2.png)", "(--overwrite)")
    assert daskkm.open_store(tmp_path / "s.zarr").digest == grown.digest


@pytest.mark.faults
def test_ingest_with_append_adds_images(run: Run, images: Path, tmp_path: Path) -> None:
    flags = ("--store", "s.zarr", "--scheduler", "threads")
    (images / "s_2.png").rename(tmp_path / "s_2.png")
    done = run("ingest", images, "--append", *flags, cwd=tmp_path)
    assert_fails(done, "s.zarr: the store does not exist")
    assert run("ingest", images, "--tile", "8", *flags, cwd=tmp_path).status == 0
    for _ in range(2):  # the second time the store holds all
        done = run("ingest", images, "s_2.png", "--append", *flags, cwd=tmp_path)
        assert done.stdout == "s.zarr: 30 tiles of 8 x 8 from 3 images\n", done.stderr
    Image.new("L", (8, 8)).save(images / "s_1.png")
    done = run("ingest", images, "--append", *flags, cwd=tmp_path)
    assert_fails(done, "s.zarr: 1 image changed (s_1.png) since the store was written")
    assert len(daskkm.open_store(tmp_path / "s.zarr")) == 30


@pytest.mark.parametrize("flags", [("--tile", "8"), ("--overwrite",)])
def test_ingest_with_append_and_an_option_of_no_use_is_wrong_usage(flags: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main.group, ["ingest", "--append", *flags])
    assert done.exit_code == 2
    assert f"{flags[0]}: not used with --append" in done.stderr


def test_commands_at_urls_give_the_results_of_local_paths(images: Path, tmp_path: Path) -> None:
    def read(base: str) -> tuple[Any, ...]:
        flags = ("--store", f"{base}/t.zarr", "--scheduler", "threads", "-q")
        for args in (
            ("ingest", f"{base}/images", "--tile", "8", *flags),
            ("sweep", *flags, "--k", "2,3", "--n-init", "2", "--out", f"{base}/out"),
            ("label", f"{base}/out/3/model.zarr", *flags, "--distances"),
            ("verify", f"{base}/t.zarr", "-q"),
        ):
            done = CliRunner().invoke(main.group, args, catch_exceptions=False)
            assert (done.exit_code, done.stderr) == (0, "")
        assert f"{base}/t.zarr: " in done.stdout
        store = daskkm.open_store(f"{base}/t.zarr")
        out = as_location(base) / "out"
        pictures = [name for name in out.sizes() if name.endswith("png")]
        summary = json.loads(bytes((out / "sweep.json").read()))
        assert summary.pop("store") == f"{base}/t.zarr"
        return (
            store.digest,
            store.labels(3).compute().tobytes(),
            store.distances(3).compute().tobytes(),
            {name: bytes((out / name).read()) for name in pictures},
            summary,
        )

    images.rename(tmp_path / "images")
    url = f"memory://commands{tmp_path}"
    for path in (tmp_path / "images").iterdir():
        (as_location(url) / f"images/{path.name}").write(path.read_bytes())
    assert read(url) == read(str(tmp_path))


@pytest.mark.faults
def test_commands_with_a_url_without_obstore_end_with_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from daskkm.cli.main import group\n"
        "from click.testing import CliRunner\n"
        "for args in (['verify', 's3://b/t'], ['ingest', 's3://b/i'], ['label', 'memory://b/m'],\n"
        "             ['sweep', '--out', 'gs://b/o'], ['verify', 'ftp://b/t']):\n"
        "    done = CliRunner().invoke(group, args)\n"
        "    print(done.exit_code, done.stderr.splitlines()[-1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *missing, unknown = done.stdout.splitlines()
    assert len(missing) == 4
    for line in missing:
        assert line.startswith("2 Error: Invalid value for ")
        assert line.endswith("URLs need obstore. Install with: pip install 'daskkm[cloud]'")
    assert "ftp://b/t: unknown scheme of a URL. Give s3://" in unknown
    assert not list(tmp_path.iterdir())


def test_sweep_of_a_store_alone_keeps_it(sweep: Run, digits: TileStore, images: Path) -> None:
    images.rename(images.parent / "images")
    done = sweep("--store", digits.path, "--k", "2", cwd=images.parent)
    assert done.status == 0
    assert "5,610 tiles from 5 images" in done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("empty", [False, True])
def test_sweep_with_a_mistyped_store_is_refused(
    run: Run, sweep: Run, images: Path, tmp_path: Path, empty: bool
) -> None:
    images.rename(tmp_path / "images")
    daskkm.create_store(tmp_path / "images", tmp_path / "photos.zarr", tile=8)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    if empty:
        (tmp_path / "photoz.zarr").mkdir()
    done = sweep("--store", "photoz.zarr", cwd=tmp_path)
    assert_fails(done, "photoz.zarr: not a store (did you mean photos.zarr?). ", "(--images)")
    assert_fails(sweep("--store", "none/t.zarr", cwd=tmp_path), "none/t.zarr: not a store. ")
    if not empty:
        near = "photoz.zarr: the store does not exist (did you mean "
        assert_fails(run("verify", "photoz.zarr", cwd=tmp_path), near)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {path for path in after if "photoz" not in path.name} == set(before)
    # Images that are named make a new store.
    flags = ("--images", "images", "--k", "2", "--scheduler", "threads")
    assert sweep("--store", "photoz.zarr", *flags, cwd=tmp_path).status == 0
    assert len(daskkm.open_store(tmp_path / "photoz.zarr")) == 5


def test_ingest_says_what_it_did_and_what_it_cropped(images: Path, tmp_path: Path) -> None:
    flags = ("--store", "s.zarr", "--tile", "10x8", "--quiet", *THREADS)
    done = process("daskkm.ingest", images, *flags, cwd=tmp_path)
    assert done.stdout == "s.zarr: 20 tiles of 10 x 8 from 3 images\n"
    assert done.stderr.startswith(
        "warning: pixels that fill no whole tile were cropped: s_1.png (4 "
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def swept(run: Run, sweep: Run, images: Path, tmp_path: Path) -> Path:
    """A folder with a store of 30 tiles and its models for k = 2 and 3, as the defaults expect."""
    (tmp_path / "images").symlink_to(images)
    assert run("ingest", "--tile", "8", *THREADS, cwd=tmp_path).status == 0
    assert sweep("--k", "2,3", cwd=tmp_path).status == 0
    return tmp_path


@pytest.mark.parametrize("flags", [(), ("--scheduler", "threads")])
def test_label_by_a_swept_model_writes_labels(
    run: Run, swept: Path, flags: tuple[str, ...]
) -> None:
    done = run("label", "centroids/3/model.zarr", *flags, cwd=swept)
    assert done.status == 0, done.stderr
    store = daskkm.open_store(swept / "store" / "tiles.zarr")
    model = daskkm.load_model(swept / "centroids" / "3" / "model.zarr").fitted_model
    np.testing.assert_array_equal(store.labels(3), model.predict(store.features()).compute())
    sizes = " ".join(map(str, model.counts_))
    assert re.fullmatch(
        rf"30 tiles in clusters of {sizes}, [\d.]+ s; "
        r"labels are in store/tiles\.zarr/labels/3\n",
        done.stdout,
    )
    assert ("dashboard: " in done.stderr) == (flags != ("--scheduler", "threads"))
    assert not (store.path / "distances").exists()


def test_label_with_distances_writes_distances(run: Run, swept: Path) -> None:
    flags = ("--scheduler", "threads", "--store", "store/tiles.zarr", "--distances")
    done = run("label", "centroids/2/model.zarr", *flags, cwd=swept)
    assert done.stdout.endswith(
        "labels are in store/tiles.zarr/labels/2 and store/tiles.zarr/distances/2\n"
    )
    store = daskkm.open_store(swept / "store" / "tiles.zarr")
    np.testing.assert_array_equal(store.distances(2).argmin(axis=1), store.labels(2))


def test_label_that_fails_ends_with_one_line(run: Run, swept: Path, digits: TileStore) -> None:
    def label(model: str | Path, *flags: str | Path) -> Done:
        return run("label", model, "--scheduler", "threads", *flags, cwd=swept)

    model = Path("centroids") / "3" / "model.zarr"
    assert_fails(label("none"), "none", "does not exist", "Fit and save a model first")
    done = label("store/tiles.zarr")
    assert_fails(done, "tiles.zarr", "its kind is store", "Name a saved model, or fit and save")
    assert "remove" not in done.stderr
    assert_fails(label(model, "--store", "none"), "none", "does not exist", "Ingest images first")
    assert_fails(label(model, "--store", digits.path), "(8, 8)", "(16, 16)", "Fit a model")
    (swept / "store" / "tiles.zarr" / "tiles" / "c" / "0" / "0" / "0").unlink()
    assert_fails(label(model), "tiles 0 to 29 cannot be read")
    (swept / model / "counts" / "c" / "0").unlink()
    assert_fails(label(model), "model.zarr", "counts", "cannot be read")


def test_daskkm_lists_each_command_and_its_version(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("daskkm")
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    for name in ("ingest", "sweep", "label", "verify"):
        assert name in shown.stdout
    version = process("daskkm", "--version", cwd=tmp_path)
    assert version.stdout == f"daskkm, version {daskkm.__version__}\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("--k", "0"),
        ("--k", "2", "--tol", "nan"),
        ("--k", "three"),
        ("--k", ""),
        ("--scheduler", "loca"),
        ("--scheduler", "missing.json"),
        ("--scheduler", "host:8786"),
        ("--init", "best"),
        ("--n-init", "0"),
        ("--tol", "-1"),
        ("--seed", "-1"),
        ("--workers", "0"),
        ("--memory-limit", "plenty"),
        ("--memory-limit", "250MB"),
        ("--memory-limit=-5GB",),
        ("--dashboard-address", "everywhere"),
        ("--dashboard-address", "127.0.0.1:99999"),
        ("--dashboard-address", "[::1]:0"),
        ("--out", "centroids", "--checkpoint", "new/../centroids"),
        ("--out", "here", "--store", "here"),
        ("--out", "images"),
        ("--store", "t.zarr", "--checkpoint", "t.zarr"),
        ("--scheduler", "tcp://127.0.0.1:9", "--workers", "3"),
        ("--scheduler", "threads", "--memory-limit", "2GB"),
        ("--k", "3-7000000000"),
        ("--k", "9" * 5000),
        ("--no-such-flag",),
        ("argument",),
    ],
)
def test_sweep_of_wrong_usage_ends_with_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.chdir(home)
    assert_wrong_usage("sweep", *flags)
    assert not (home / "centroids").exists()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("one", "two"),
        ("one", "--distances", "5"),
        ("one", "--scheduler", "loca"),
        ("one", "--workers", "0"),
        ("one", "--memory-limit", "50MB"),
        ("one", "--dashboard-address", "everywhere"),
        ("one", "--workers", "3", "--scheduler", "tcp://127.0.0.1:9"),
        ("one", "--dashboard-address", "127.0.0.1:0", "--scheduler", "threads"),
    ],
)
def test_label_of_wrong_usage_ends_with_2(flags: tuple[str, ...]) -> None:
    assert_wrong_usage("label", *flags)


@pytest.mark.parametrize("tile", ["0", "x", "8x", "-8", "8x8x8", "9" * 5000])
def test_ingest_of_wrong_tile_sizes_ends_with_2(tile: str) -> None:
    assert_wrong_usage("ingest", "images", f"--tile={tile}")


def assert_wrong_usage(*args: str) -> None:
    done = CliRunner().invoke(main.group, args)
    assert done.exit_code == 2, done.stderr
    assert "Error: " in done.stderr


def assert_fails(done: Done, *words: str) -> None:
    assert done.status == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.endswith(line + "\n")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


def test_sweep_that_fails_ends_with_one_line(
    run: Run, sweep: Run, home: Path, images: Path
) -> None:
    (home / "empty").mkdir()
    assert_fails(sweep("--images", "empty", cwd=home), "empty", "which is empty. Add images")
    assert_fails(sweep("--images", "none", cwd=home), "none", "no such file or folder")
    assert_fails(sweep("--k", "6000", cwd=home), "n_samples=5610 should be >= n_clusters=6000")
    # Now there is a store, but of other images.
    assert_fails(sweep("--images", "none", cwd=home), "none", "no such file or folder")
    (home / "empty" / "notes.txt").touch()
    assert_fails(sweep("--images", "images", "--store", "empty", cwd=home), "empty", "not a store")
    done = run("ingest", images, "--store", "images", *THREADS, cwd=home)
    assert_fails(done, "images", "Choose another location")
    (images / "s_3.png").write_text("text")
    done = run("ingest", images, "--store", "new.zarr", *THREADS, cwd=home)
    assert_fails(done, "s_3.png", "not an image")
    (home / "file").touch()
    assert_fails(sweep("--out", "file/out", cwd=home), "file", "Choose another folder")
    assert_fails(sweep("--store", "file", cwd=home), "file")
    assert_fails(sweep("--images", "images", "--store", "file/s.zarr", cwd=home), "file")


@pytest.mark.parametrize(
    ("damage", "flags"),
    [
        ("flipped", ("--scheduler", "threads")),
        ("flipped", ("--workers", "1")),
        ("missing", ()),
    ],
)
def test_sweep_of_a_damaged_chunk_names_it(
    run: Run, sweep: Run, images: Path, tmp_path: Path, flags: tuple[str, ...], damage: str
) -> None:
    images.rename(tmp_path / "images")
    store = daskkm.create_store(tmp_path / "images", tmp_path / "store" / "tiles.zarr", tile=8)
    chunk = store.path / "tiles" / "c" / "0" / "0" / "0"
    if damage == "flipped":
        data = bytearray(chunk.read_bytes())
        data[1000] ^= 1
        chunk.write_bytes(data)
    else:
        chunk.unlink()
    # A store named alone is used as it is.
    done = run("sweep", "--store", "store/tiles.zarr", *flags, cwd=tmp_path)
    assert_fails(done, "tiles.zarr: tiles 0 to 29 cannot be read")
    if damage == "missing":
        assert_fails(sweep("--k", "2", cwd=tmp_path), "missing file", "(--overwrite)")
        assert sweep("--k", "2", "--max-iter", "1", "--overwrite", cwd=tmp_path).status == 0
        assert chunk.exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("options", "in_python", "in_command"),
    [
        (("checkpoint", "fresh=True"), "is damaged (checkpoint, fresh=True)", "(--place, --fresh)"),
        (("overwrite=True",), "is damaged (overwrite=True)", "is damaged\n"),
        ((), "is damaged", "is damaged\n"),
    ],
)
def test_error_names_parameters_in_python_and_flags_in_a_command(
    options: tuple[str, ...], in_python: str, in_command: str
) -> None:
    error = daskkm.CheckpointError("it is damaged", options=options)

    @click.command
    @click.option("--place", "checkpoint")
    @click.option("--fresh", is_flag=True)
    def command(checkpoint: str, fresh: bool) -> None:
        raise error

    group = main.Group(commands={"command": command})
    done = CliRunner().invoke(group, ["command"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert in_command in done.stderr
    assert str(error).endswith(in_python)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def uint16_sums() -> None:
    check_exact(10**8, 256, np.dtype(np.uint16))


def complex_tiles() -> None:
    check_dtype(np.dtype(complex))


def too_much_memory() -> None:
    np.empty(1 << 60, np.uint8)


def raises(error: Exception) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.faults
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (uint16_sums, ["uint16 features could overflow", "Use at most"]),
        (complex_tiles, ["complex128 are not supported", "Convert to one of"]),
        (too_much_memory, ["out of memory (Unable to allocate 1.00 EiB"]),
        (raises(MemoryError()), ["out of memory (MemoryError)"]),
        (raises(OSError()), ["OSError. Correct this"]),
        (raises(OSError("it is\ngone")), ["it is gone. Correct this"]),
        (raises(PermissionError(13, "Permission denied", "a\nb")), ["a\\nb: Permission denied. "]),
        (raises(KeyError("x")), ["internal error: KeyError: 'x' at ", "test_commands.py:"]),
        (raises(ValueError("a\n\nb")), ["internal error: ValueError: a b at "]),
        (raises(RecursionError("x" * 5000)), ["internal error: RecursionError: xxx", " … at "]),
        (
            raises(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
            ["UnicodeDecodeError: 'utf-8'"],
        ),
        (raises(AssertionError()), ["internal error: AssertionError: AssertionError at"]),
    ],
)
def test_command_ends_with_one_line_whatever_is_raised(
    body: Callable[[], None], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = main.Group(commands={"test": click.Command("test", callback=body)})
    monkeypatch.delenv(main.TRACEBACK, raising=False)
    done = CliRunner().invoke(group, ["test"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .+\n", done.stderr)
    assert len(done.stderr) < 1000
    assert "None" not in done.stderr
    for word in words:
        assert word in done.stderr
    if "internal" in done.stderr:
        assert f"{main.TRACEBACK}=1" in done.stderr
    monkeypatch.setenv(main.TRACEBACK, "1")
    traced = CliRunner().invoke(group, ["test"])
    assert traced.stderr.startswith("Traceback (most recent call last):\n")
    assert traced.stderr.endswith(done.stderr)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("a: [1,\nb: {", ("daskkm.verify",)),
        ("- a list", ("daskkm", "sweep")),
        ("\x00", ("daskkm.label", "m")),
    ],
)
def test_malformed_configuration_of_dask_is_one_line(
    tmp_path: Path, text: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "dask.yaml").write_text(text)
    done = process(*command, cwd=tmp_path, DASK_CONFIG=str(tmp_path))
    assert_fails(done, "dask's configuration", "dask.yaml", "is malformed", "Correct or remove")
    assert done.stderr.count("\n") == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(), "OSError"),
        (OSError("full"), "full"),
        (OSError(28, "No space left on device", "f"), "No space left on device"),
        (TimeoutError(), "TimeoutError"),
        (socket.gaierror("unknown"), "unknown"),
        (ValueError("null byte"), "null byte"),
    ],
)
def test_reason_is_never_none(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(error) == text

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(os, "listdir", fail)
    if isinstance(error, OSError):
        with pytest.raises(daskkm.ImageError, match=re.escape(f"({text})")):
            find.find_images(ROOT / "images")
        with (
            pytest.raises(daskkm.ResultsError, match=re.escape(f"({text})")),
            named(LocalLocation("r")),
        ):
            fail()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["swep"], "No such command 'swep'. Did you mean 'sweep'?"),
        (["verfiy", "store"], "Did you mean 'verify'?"),
        (["fit"], "No such command 'fit'"),
        (["sweep", "--stor", "x"], "--store"),
        (["sweep", "--k", "2,9-8"], "'9-8': not a k or an ascending range"),
    ],
)
def test_wrong_usage_suggests_a_correction(args: list[str], words: str) -> None:
    done = CliRunner().invoke(main.group, args)
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize("name", [(), ("ingest",), ("sweep",), ("label",), ("verify",)])
def test_each_command_has_a_short_flag_for_help(name: tuple[str, ...]) -> None:
    short, long = (CliRunner().invoke(main.group, [*name, flag]) for flag in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "-h, --help" in short.stdout


def test_dask_runs_the_commands(tmp_path: Path) -> None:
    done = process("dask", "daskkm", "verify", "none.zarr", cwd=tmp_path)
    assert_fails(done, "none.zarr")
    done = process("dask", "daskkm", "swep", "-h", cwd=tmp_path)
    assert done.status == 2
    assert "Usage: dask daskkm [OPTIONS] COMMAND" in done.stderr
    assert "Did you mean 'sweep'?" in done.stderr
    code = (
        "import sys; from daskkm.cli.main import dask_command;"
        "print(*{'numpy', 'dask', 'zarr', 'numba', 'PIL', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    imported = subprocess.run(command, capture_output=True, text=True, check=True)
    assert imported.stdout == "\n"
