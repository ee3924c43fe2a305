"""Test that Python functions and command options for paths refuse URLs."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest

import daskkm
from daskkm.cli import main, options
from daskkm.errors import CheckpointError, ImageError, ModelError, StoreError
from daskkm.storage.locations import url_problem

if TYPE_CHECKING:
    from collections.abc import Callable

URLS = [
    "s3://bucket/t.zarr",
    "gs://bucket",
    "file:///data/t.zarr",
    "simplecache::s3://bucket/t.zarr",
    "s3:///bucket",
    Path("s3://bucket/t.zarr"),
    Path("file:///data/t.zarr"),
    str(Path("s3://bucket/t.zarr")),
    str(Path("file:///data/t.zarr")),
    str(Path("simplecache::s3://bucket/t.zarr")),
]
PATHS = ["t.zarr", "a:b", "./s3:/b", "/s3://b", "dir/http://x", "C:/x", "12:30/x", "s3:"]


@pytest.mark.parametrize("url", URLS)
def test_url_problem_of_a_url_has_a_hint(url: str | Path) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert problem.startswith(f"{url}: this is a URL, not a local path. Give ")
    assert problem.endswith("the path /data/t.zarr") == str(url).startswith("file:")


@pytest.mark.parametrize("path", [*PATHS, *map(Path, ["t.zarr", "a:b", "/s3://b", "dir/s3:/b"])])
def test_url_problem_of_a_path_is_none(path: str | Path) -> None:
    assert url_problem(path) is None


X = np.arange(8.0).reshape(4, 2)


def fitted() -> daskkm.KMeans:
    return daskkm.KMeans(n_clusters=1, n_init=1).fit(X)


# Keys are a function or method, and a parameter.
CALLS: dict[tuple[str, str], tuple[Callable[[Any], object], type[Exception]]] = {
    ("create_store", "images"): (lambda url: daskkm.create_store(url, "t.zarr"), ImageError),
    ("create_store", "store"): (lambda url: daskkm.create_store("images", url), StoreError),
    ("open_store", "path"): (daskkm.open_store, StoreError),
    ("load_model", "path"): (daskkm.load_model, ModelError),
    ("KMeans.save", "path"): (lambda url: fitted().save(url), ModelError),
    ("FittedModel.save", "path"): (lambda url: fitted().fitted_model.save(path=url), ModelError),
    ("fit_sweep", "checkpoint"): (
        lambda url: daskkm.fit_sweep(X, [1], n_init=1, checkpoint=url),
        CheckpointError,
    ),
}


def public_functions() -> dict[str, Any]:
    found = {}
    for name in daskkm.__all__:
        value = getattr(daskkm, name)
        if not inspect.isclass(value):
            found[name] = value
        elif value.__module__.startswith("daskkm."):
            found |= {f"{name}.{method}": f for method, f in inspect.getmembers(value, callable)}
    return found


def test_calls_of_this_module_cover_all_public_path_parameters() -> None:
    found = {
        (name, param.name)
        for name, function in public_functions().items()
        if inspect.isfunction(function) and not name.split(".")[-1].startswith("_")
        for param in inspect.signature(function).parameters.values()
        if "PathLike" in str(param.annotation)
    }
    assert found == set(CALLS)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/t.zarr", Path("s3://bucket/t.zarr"), str(Path("s3://b/t.zarr")), "file:///t"],
)
@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_function_of_a_url_raises_and_writes_nothing(
    call: tuple[str, str], url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, error = CALLS[call]
    with pytest.raises(error, match="this is a URL, not a local path"):
        function(url)
    assert not list(tmp_path.iterdir())


def path_parameters() -> list[tuple[click.Command, click.Parameter]]:
    names = main.group.list_commands(click.Context(main.group))
    commands = [import_module(f"daskkm.cli.{name}").command for name in names]
    return [
        (command, param)
        for command in commands
        for param in command.params
        if isinstance(param.type, click.Path | click.File)
    ]


def test_path_parameters_of_commands_are_all_local_paths() -> None:
    """The options of schedulers are no path parameters: a scheduler may be an address."""
    assert {type(param.type) for _, param in path_parameters()} == {options.LocalPath}
    names = {param.name for _, param in path_parameters()}
    assert names >= {"images", "store", "store_path", "out", "checkpoint", "model_path"}


@pytest.mark.parametrize("url", ["s3://bucket/t.zarr", "file:///t"])
def test_command_of_a_url_is_wrong_usage_and_writes_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command, param in path_parameters():
        args = [url] if isinstance(param, click.Argument) else [param.opts[0], url]
        with pytest.raises(click.BadParameter, match="this is a URL") as found:
            command.main(args, standalone_mode=False)
        assert found.value.exit_code == 2
        assert not list(tmp_path.iterdir())
