"""A nursery for the background tasks of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks are cancelled when the block is left.

    An exception of the block is raised as it is, so that callers can handle it by its type. An exception of a task is
    raised in a group, as by any nursery.
    """
    problem: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:  # perhaps by this nursery, which alone may handle that
            raise
        except BaseException as error:  # raised below, outside the nursery, which would wrap it
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
