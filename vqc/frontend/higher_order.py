"""Higher-order operators under the recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vqc.frontend import compat

if TYPE_CHECKING:
    from vqc.frontend.recorder import Recorder


def rules(recorder: Recorder) -> tuple[dict[str, Callable[..., Any]], Callable[..., Any]]:
    """Rules by operator name, and the rule for all others: run them with the recorder listening."""

    def opened(op: Any, mode: Any, args: tuple, kwargs: dict) -> Any:
        with recorder.mode:
            return compat.run_higher_order(op, args, kwargs)

    return {}, opened
