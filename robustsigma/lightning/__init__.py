"""Lightning: robustness for your own training. Nothing here loads Lightning before it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsigma.lightning.robust_callback import RobustCallback

__all__ = ["RobustCallback"]


def __getattr__(name: str) -> Any:
    if name != "RobustCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustsigma.lightning.robust_callback import RobustCallback

    return RobustCallback
