"""Entry of ``python -m daskkm.verify``."""

if __name__ == "__main__":
    from daskkm.cli import interrupts

    interrupts.end_at_once()
    from daskkm.cli import main

    main.run_module("verify")
