"""Opening a PostgreSQL store alone: processes that create MLflow's tables together break their work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

LOCK = 7_301_894_405_512
"""Any number that nobody else locks in MLflow's database."""

T = TypeVar("T")


def opened(uri: str, connect: Callable[[], T]) -> T:
    """Connect, which creates or migrates the tables, while no other process of qtrack's does."""
    engine = create_engine(uri, poolclass=NullPool)
    with engine.connect() as connection:  # the lock ends with it
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        return connect()
