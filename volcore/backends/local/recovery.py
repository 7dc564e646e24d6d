"""What an unclean stop leaves to do: states that were not flushed, torn checksums, stray files.

Recovery may itself be cut off at any point; it then starts again.
"""

from array import array
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import Buffer

from volcore.backends.local.files import translated
from volcore.backends.local.layers import Page
from volcore.backends.local.store import LocalStore
from volcore.backends.local.unflushed import marked
from volcore.errors import IntegrityError, Reason, VolcoreError
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES

_NO_CRCS: Final = array("I", bytes(4 * CHUNK_BLOCKS))
_STATES: Final = bytes([chunkmap.ABSENT, chunkmap.DATA, chunkmap.ZERO])
_log = structlog.get_logger("volcore.local")


def sweep(store: LocalStore) -> int:
    """Delete the files of layers that do not exist; return how many."""
    store.memory.keep_only(store.layers.volume_ids())
    return store.files.sweep(frozenset(store.layers.layer_ids()))


def settle(store: LocalStore, volume_id: str, layer_id: int) -> int:
    """Make the rows of a volume's top say what was answered; return how many chunks that changed.

    Call it with the top layer, inside a transaction, when nobody has the volume open. An unclean
    stop leaves two things. States that were not flushed (`unflushed`) count from now on. Blocks of
    a noted chunk were being overwritten in place: each holds its old or its new content, and no
    checksum can tell which. So the checksums of these, and of blocks that are new, are taken from
    the data. A block that is missing from the file keeps its checksum and fails.

    Raises:
        IntegrityError: BAD_RECORD, what was not flushed makes no sense; nothing was changed.
    """
    left, states = store.memory.left(volume_id), {}
    if left is not None and left.counts(layer_id, store.layers.page_sum(layer_id)):
        states = _states_in(left.path)
    noted = set(store.layers.notes(layer_id))
    chunks = sorted(noted | states.keys())
    if not chunks:
        return 0
    # What is read below must be on the disk before a checksum says so.
    store.files.sync(layer_id)
    for chunk in chunks:
        found = list(store.layers.pages([layer_id], chunk))
        if not found and chunk not in states:
            continue
        page = found[0] if found else Page(layer_id, chunk, bytes(CHUNK_BLOCKS), _NO_CRCS)
        proven = bytes(CHUNK_BLOCKS) if chunk in noted else page.states
        now = Page(layer_id, chunk, states.get(chunk, page.states), page.crcs)
        store.layers.put_pages([_recomputed(store, now, proven)])
    store.layers.clear_notes(layer_id)
    return len(chunks)


def settle_left(store: LocalStore) -> VolcoreError | None:
    """Settle what a killed process left of volumes that nobody has opened since.

    It lies in the memory of this host alone, and the pool may go to another one. Call it outside of
    transactions, when nobody has a volume open. Returns the first failure: what fails stays, and
    the others are settled; repeat it once there is space or the disk answers.
    """
    failure: VolcoreError | None = None
    for volume_id in store.memory.left_of(store.layers):
        try:
            with store.database.transaction():
                point = store.layers.find_volume(volume_id)
                count = 0 if point is None else settle(store, volume_id, point.layer_id)
        except (VolcoreError, OSError) as err:
            _log.warning("not settled", volume=volume_id, problem=str(err))
            known = err if isinstance(err, VolcoreError) else translated(err, f"volume {volume_id}")
            failure = failure or known
        else:
            _log.info("settled", volume=volume_id, chunk_count=count)
    return failure


def _states_in(left: Path) -> dict[int, bytes]:
    """Return the states of chunks that were not flushed; none if somebody deleted the file.

    Raises:
        IntegrityError: BAD_RECORD, they make no sense.
    """
    found: dict[int, bytes] = {}
    with suppress(FileNotFoundError):
        found = dict(marked(left))
    if any(states.translate(None, _STATES) for states in found.values()):
        raise IntegrityError(
            f"what a volume had not flushed when its server was killed is damaged in {left}; delete"
            " that file to go on with what was flushed",
            reason=Reason.BAD_RECORD,
            file=str(left),
        )
    return found


def _recomputed(store: LocalStore, page: Page, proven: Buffer) -> Page:
    """Return the page with the checksums of all DATA blocks that are not DATA in `proven`."""
    crcs = array("I", page.crcs)
    view = memoryview(crcs)
    store.files.uncache(page.layer_id, page.chunk_index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
    for start, length, state in chunkmap.state_runs(page.states, 0, CHUNK_BLOCKS):
        if state != chunkmap.DATA:
            continue
        for first, count, known in chunkmap.state_runs(proven, start, length):
            if known == chunkmap.DATA:
                continue
            data = memoryview(bytearray(count * BLOCK_SIZE_BYTES))
            offset_bytes = page.chunk_index * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            got = store.files.read(page.layer_id, data, offset_bytes) // BLOCK_SIZE_BYTES
            crc32c.crc32c_blocks(
                data[: got * BLOCK_SIZE_BYTES], BLOCK_SIZE_BYTES, view[first : first + got]
            )
    chunkmap.freeze(page.states, crcs)
    return Page(page.layer_id, page.chunk_index, page.states, crcs)
