"""Entry of ``python -m daskkm.sweep``."""

if __name__ == "__main__":
    from daskkm.cli.interrupts import unwind_on_signals

    with unwind_on_signals():
        from daskkm.cli.main import run_module

        run_module("sweep")
