"""Values that the methods of an environment, or its tools, may return at once or as awaitables."""

import asyncio
import inspect
from typing import Any


def awaited(found: Any) -> Any:
    """The value itself, or the one that it is awaited for in an event loop of its own."""

    async def value() -> Any:
        return await found

    return asyncio.run(value()) if inspect.isawaitable(found) else found
