"""Which policy decides, and since when."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from roofline_policies.plain import plain
from roofline_policies.settings.loading import Settings

logger = logging.getLogger(__name__)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True)
class Loaded:
    """Which policy decides. loaded_at: ISO 8601. revived_from: why its predecessor had failed, if it had."""

    reloads: int = 0
    loaded_at: str = field(default_factory=_now)
    revived_from: str | None = None

    def again(self, settings: Settings, revived_from: str | None) -> None:
        """Note that another policy decides from now on."""
        self.reloads, self.loaded_at, self.revived_from = self.reloads + 1, _now(), revived_from
        who = plain(f"{settings.name} from {settings.source}")
        told = f"Roofline: policy {who} decides from now on (reload {self.reloads})"
        logger.info(told if revived_from is None else f"{told}; its predecessor had failed: {revived_from}")
