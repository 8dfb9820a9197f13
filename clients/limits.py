"""How long a store or server may take. A test, or an application, sets other limits in this module."""

from __future__ import annotations

#: Seconds that a store or server has for its first answer.
FIRST_ANSWER_TIMEOUT_S = 5.0

#: Seconds that a store or server has for each later answer.
ANSWER_TIMEOUT_S = 30.0

#: Seconds between two attempts of a step during an outage.
RETRY_INTERVAL_S = 0.2
