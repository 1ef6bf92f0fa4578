"""scipy's sparse matrices, without parts of numpy that importing scipy would load for nothing."""

import numpy  # noqa: F401  (it must be there before its parts are deferred)

from .lazy_imports import defer_of_numpy

defer_of_numpy()

from scipy import sparse  # noqa: E402

__all__ = ["sparse"]
