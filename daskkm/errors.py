"""What daskkm raises when the world is not as it needs it: one sentence each.

The sentence says what is wrong, where, and what to do.
"""


class DaskkmError(Exception):
    """Any error that daskkm raises on purpose."""


class SheetError(DaskkmError):
    """A sheet that cannot be read, or does not fit with the others."""


class StoreError(DaskkmError):
    """A store that is missing, incomplete, damaged or not one of ours."""


class SchedulerError(DaskkmError):
    """A scheduler that cannot be reached, or has no workers."""


class ResultsError(DaskkmError):
    """Results that cannot be written."""


class ModelError(DaskkmError):
    """A saved model that is missing, damaged or not one of ours, or that cannot be written."""


class FitError(DaskkmError, ValueError):
    """Parameters that do not fit the tiles."""
