"""The commands under one name, ``daskkm``: see `daskkm.cli.main.group`."""

from __future__ import annotations

from typing import NoReturn

from daskkm.cli import interrupts


def main() -> NoReturn:
    """Run the command that the process was given."""
    interrupts.end_at_once()
    from daskkm.cli import main

    main.run(main.group)


if __name__ == "__main__":
    main()
