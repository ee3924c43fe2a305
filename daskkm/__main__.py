"""``daskkm ingest``, ``sweep``, ``label`` and ``verify``: the commands under one name."""

from __future__ import annotations

from importlib import import_module
from typing import NoReturn

import click

from daskkm import __version__, cli


class _Lazy(click.Group):
    """Imports a command when it is asked for: each then starts as fast as on its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return ["ingest", "sweep", "label", "verify"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"daskkm.{cmd_name}").command
        return command


@click.command(cls=_Lazy)
@click.version_option(__version__, prog_name="daskkm")
def group() -> None:
    """k-means over image tiles that do not fit in memory."""


def main() -> NoReturn:
    """Run the command that the process was given."""
    cli.run(group)


if __name__ == "__main__":
    main()
