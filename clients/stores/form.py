"""The form of a store's tables: what this program relies on, and nothing else.

Other columns and other indexes do not matter. An index that refuses a row is found when it does, and loses nothing.
"""

from __future__ import annotations

from clients.errors import Unavailable

#: The part of a form that says that there is a table at all.
EXISTS = "a table"


def check_form(store: str, table: str, found: set[str], form: set[str], action: str) -> None:
    """Raise `Unavailable`, in one line that says what differs, if a table lacks a part of the form."""
    if EXISTS not in found:
        raise Unavailable(
            f"{store} has no table {table} (expected only if no account was ever requested here); {action} and run again"
        )
    if lacking := sorted(form - found):
        problems = [f"lacks {part}" for part in lacking] + [f"has {part}" for part in sorted(found - form)]
        raise Unavailable(
            f"{store}: the table {table} is not this program's: it {' and '.join(problems)}; {action} and run again"
        )
