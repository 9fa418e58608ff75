"""The authors' code where it differs from the paper or from the mathematically sound method, for comparisons.

Each class takes the settings of the method it derives from, except those that the code fixes.
"""

from robustsigma.engine.attributors.published.guided_walk import AuthorsAGI, AuthorsIG2
from robustsigma.engine.attributors.published.path_methods import (
    AuthorsIDG,
    AuthorsLeftIntegratedGradients,
    CaptumIntegratedGradients,
    IDGRepositoryLeftIntegratedGradients,
    LiteralCrediblePath,
)
from robustsigma.engine.attributors.published.sigma import AuthorsSigma

__all__ = [
    "AuthorsAGI",
    "AuthorsIDG",
    "AuthorsIG2",
    "AuthorsLeftIntegratedGradients",
    "AuthorsSigma",
    "CaptumIntegratedGradients",
    "IDGRepositoryLeftIntegratedGradients",
    "LiteralCrediblePath",
]
