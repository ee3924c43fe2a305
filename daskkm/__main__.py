"""Entry of ``daskkm`` and ``python -m daskkm``."""

from __future__ import annotations

from typing import NoReturn

from daskkm.cli.interrupts import unwind_on_signals


def main() -> NoReturn:
    """Run the command line of the process."""
    with unwind_on_signals():
        from daskkm.cli.main import run

        run()


if __name__ == "__main__":
    main()
