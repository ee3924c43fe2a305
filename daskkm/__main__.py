"""The commands under one name, ``daskkm``: see `daskkm.cli.group`."""

from __future__ import annotations

from typing import NoReturn

from daskkm import interrupts


def main() -> NoReturn:
    """Run the command that the process was given."""
    interrupts.end_at_once()
    from daskkm import cli

    cli.run(cli.group)


if __name__ == "__main__":
    main()
