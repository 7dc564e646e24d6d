"""Changes of a pool that have not ended."""

from volcore.engine.pool import Pool
from volcore.model.records import Intent


def intents_of(pool: Pool) -> list[Intent]:
    """Return the intents that stand once what is erased behind answers is erased."""
    pool.making.flush()
    return pool.list(Intent)
