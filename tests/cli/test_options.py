"""Options that commands share, and types of their values."""

from __future__ import annotations

import click
import dask
import pytest
from click.testing import CliRunner

from daskkm.cli import options


@pytest.mark.parametrize("text", ["3-7", "3,4,5-7", "7,6,5,4,3", "3-5, 4-7", "3,4,5,6,7,7"])
def test_parse_ks_returns_each_k_once(text: str) -> None:
    assert options.parse_ks(text) == (3, 4, 5, 6, 7)


@pytest.mark.parametrize("text", ["", "-3", "3-", "a", "1-2-3", "3,,4", "5-4", "0-2", "²"])
def test_parse_ks_of_other_text_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.parse_ks(text)


@click.command
@options.scheduler
def where(scheduler_name: str, **_: object) -> None:
    click.echo(scheduler_name)


@pytest.mark.parametrize(
    ("settings", "flags", "expected"),
    [
        ({}, (), "local"),
        ({"scheduler-address": "tcp://host:8786"}, (), "tcp://host:8786"),
        ({"scheduler-address": "tls://host:8786"}, (), "tls://host:8786"),
        ({"scheduler-address": "host:8786"}, (), "tcp://host:8786"),
        ({"scheduler-address": "tcp://host:8786"}, ("--scheduler", "local"), "local"),
        ({"scheduler-address": "tcp://host:8786", "scheduler": "threads"}, (), "tcp://host:8786"),
        ({"scheduler": "threads"}, (), "threads"),
        ({"scheduler": "threading"}, ("--threads-per-worker", "1"), "threads"),
    ],
)
def test_scheduler_defaults_to_the_setting_of_dask(
    settings: dict[str, str], flags: tuple[str, ...], expected: str
) -> None:
    unset = {"scheduler-address": None, "scheduler": None}
    with dask.config.set(unset | settings):
        done = CliRunner().invoke(where, flags)
    assert (done.exit_code, done.output) == (0, f"{expected}\n")


@pytest.mark.parametrize(
    ("settings", "flags", "status", "words"),
    [
        ({"scheduler": "processes"}, (), 0, ["warning: ", "'processes'", "--scheduler", "local\n"]),
        ({"scheduler-address": "ucx://h:1"}, (), 2, ["'ucx://h:1'", "DASK_SCHEDULER_ADDRESS"]),
        (
            {"scheduler-address": "tcp://h:1"},
            ("--workers", "3"),
            2,
            ["--workers: not used with --scheduler tcp://h:1, which dask is set to"],
        ),
        ({"scheduler": "threads"}, ("--workers", "3"), 2, ["threads, which dask is set to; name"]),
        ({}, ("--tls-ca-file", __file__), 2, ["not used with --scheduler local\n"]),
    ],
)
def test_setting_of_dask_that_does_not_apply_is_reported(
    settings: dict[str, str], flags: tuple[str, ...], status: int, words: list[str]
) -> None:
    with dask.config.set({"scheduler-address": None, "scheduler": None} | settings):
        done = CliRunner().invoke(where, flags)
    assert done.exit_code == status
    for word in words:
        assert word in done.output
