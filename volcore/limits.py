"""Every bound and default, in one place, with its reason; relations are checked at import."""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
PIB: Final = 1 << 50

# Names, labels, pages: strings are at most 128 bytes, as the Container Storage Interface has it.
NAME_BYTES_MAX: Final = 100
"""Names of volumes, snapshots, images, pools and hosts; an rbd image name adds `.` and an id."""
BACKEND_NAME_BYTES_MAX: Final = 128
"""Names of what others made, when it is adopted or released."""
LABEL_KEY_BYTES_MAX: Final = 63
LABEL_VALUE_BYTES_MAX: Final = 128
LABELS_MAX: Final = 64
"""64 labels of 191 bytes stay below 16 KiB, so a record stays a small omap value."""
CLIENT_ADDRESSES_MAX: Final = 64
"""That a caller names for a host; a host has few IPs."""
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
PAGE_TOKEN_AGE_S_MAX: Final = 24 * 3600
"""A token older than a day is refused: what it points at may be long gone."""
FILTER_BYTES_MAX: Final = 1024
REQUEST_ID_BYTES_MAX: Final = 64

# Blocks and sizes.
BLOCK_SIZE_BYTES: Final = 4 * KIB
"""Unit of presence and checksum."""
CHUNK_SIZE_BYTES: Final = 4 * MIB
"""Unit of mapping and placement; equals the default object size of rbd."""
CHUNK_BLOCKS: Final = CHUNK_SIZE_BYTES // BLOCK_SIZE_BYTES
VOLUME_SIZE_BYTES_MIN: Final = BLOCK_SIZE_BYTES
VOLUME_SIZE_BYTES_MAX: Final = 64 * TIB
"""librbd's object map ends at 256 TB for 4 MiB objects; 64 TiB is what we test."""
IMAGE_VIRTUAL_SIZE_BYTES_MAX: Final = 16 * TIB
"""A header that claims more is a lie or an attack."""

# Calls.
DEPLOY_VOLUMES_MAX: Final = 1000
GROUP_VOLUMES_MAX: Final = 64
"""Volumes frozen at one instant: their writers wait for one another."""
MESSAGE_BYTES_MAX: Final = 4 * MIB
"""Largest gRPC message either side accepts; bulk bytes move in frames below it."""
FRAME_BYTES_MAX: Final = 1 * MIB
"""Largest piece of bulk data in one stream message."""
EXTENTS_PER_MESSAGE_MAX: Final = 4096
"""Some 24 bytes each: a message of a diff stays near 100 KiB."""
WAIT_TIMEOUT_S_MAX: Final = 3600
CALL_THREADS_DEFAULT: Final = 32
"""Bounded pool for blocking calls; librbd stops scaling near 16 threads per client."""
SNAPSHOT_THREADS: Final = 128
"""Threads for making and deleting snapshots. On Ceph these wait up to a second for a monitor, and
those that wait together share the second: 100 attached volumes at once in little more than one."""
CALLS_QUEUED_MAX: Final = 1024
DEADLINE_S_DEFAULT: Final = 300
SHUTDOWN_GRACE_S_DEFAULT: Final = 30
FENCE_LOOK_PERIOD_S: Final = 30.0
"""How often fenced hosts are looked after: an entry of the blocklist that librbd made runs out."""
LOCK_WAIT_S_MAX: Final = 30
"""How long a call waits for another call on the same object before it answers ABORTED."""

# Health.
HEALTH_LOOK_PERIOD_S: Final = 2.0
"""Pause between two looks at storage elsewhere: one small read and one question to the monitors."""
HEALTH_SILENCE_S_MAX: Final = 6.0
"""Storage whose last answer is older is out of reach; an OSD that restarts is silent for less."""
HEALTH_MONITORS_SILENCE_S_MAX: Final = 30.0
"""Most calls need no monitor, and electing one takes some 15 s when the leading one has died."""
HEALTH_TELL_PERIOD_S: Final = 0.5
"""How often what was seen is told on; a dictionary is compared."""

# Watchdog.
WATCHDOG_PERIOD_S_MAX: Final = 5.0
"""Longest pause between signs of life to the service manager; three fit into its patience."""
WORKERS_STUCK_S_MAX: Final = 300.0
"""Threads that are all busy while no call ends for so long will not end one: a request to a dead
cluster is given up after 120 s."""

# Several servers on one rbd pool.
SERVER_LEASE_S: Final = 5
"""A server that was not heard of for so long, by the OSD's clock, is taken over from; one that died
on the same host is noticed at once."""
SERVER_RENEW_S: Final = 1.0
STANDBY_LOOK_S: Final = 0.1
"""How often a server on standby reads who has the pool: a read of a fifth of a millisecond."""
STANDBY_RETRY_S: Final = 5.0
"""How long it waits after a take-over that did not succeed."""
TAKE_OVER_WAIT_S: Final = 10.0
"""How long a call waits while its pool is being taken over, before it is UNAVAILABLE."""
RECOVERIES_AT_ONCE: Final = 16
"""Changes settled at a time when a pool is opened: each waits for monitors or OSDs."""
RECOVERY_WAIT_S: Final = 600.0
"""How long one of them may wait for another of the same volume."""
LOST_EXIT_S: Final = 10.0
"""How long a server that lost its pool may take to end by itself."""
FAILOVER_S: Final = 30.0
"""How long a client with several endpoints goes on trying them."""
FAILOVER_DELAY_S_MAX: Final = 0.25
"""Its longest pause: somebody waits, and it is one small call."""

# Depth and counts.
LOCAL_DEPTH_MAX: Final = 4096
RBD_DEPTH_MAX: Final = 14
"""The kernel client refuses more than 16 ancestors; two are kept for the caller."""
SNAPSHOTS_PER_VOLUME_MAX: Final = 400
"""The kernel rbd client stops at about 510 snapshots of one image."""

# Warm clones.
WARM_CLONES_MAX: Final = 1000
"""Of one pool; each is a record of the catalog and an rbd image."""
WARM_CLONES_FIRST: Final = 4
"""Of an image that was deployed from once."""
WARM_DEMAND_S: Final = 10.0
"""A stock covers twice what is asked for in about so long: it is refilled well within that."""
WARM_IDLE_S: Final = 600.0
"""After so long without need for it, a stock is halved."""
WARM_HOT_S: Final = 60.0
"""For so long after a demand, other images take nothing of an image's share."""

# NBD.
NBD_REQUEST_BYTES_MAX: Final = 32 * MIB
"""The protocol's own recommendation for the largest payload."""
NBD_CONNECTIONS_MAX: Final = 4096
NBD_IN_FLIGHT_MAX: Final = 64
NBD_IN_FLIGHT_BYTES_MAX: Final = 64 * MIB
"""Per connection: back-pressure instead of unbounded memory."""

# Import.
HANDED_FILES_MAX: Final = 64
"""Files that clients have handed over, at a time; each is a descriptor and a thread that waits."""
HANDED_FILE_UNUSED_S_MAX: Final = 60
"""How long a handed file waits for its import to begin."""
CONVERT_MEMORY_BYTES_MAX: Final = 2 * GIB
CONVERT_CPU_S_MAX: Final = 4 * 3600
"""Resource limits of the converting process: an image is untrusted input."""

# Deletes.
DELETES_AT_ONCE: Final = 4
"""Threads of a server that free what was deleted: some ten volumes a second, and deployments beside
them hardly notice."""
DELETES_WAITING_MAX: Final = 10_000
"""Deleted and not yet freed, per server; each is two records of the catalog."""
DELETE_RETRY_S_MIN: Final = 1.0
DELETE_RETRY_S_MAX: Final = 60.0
"""Pauses between attempts double from one to the other: a client that died is gone after 30 s."""
DELETE_SNAPSHOT_DELAY_S: Final = 2.0
"""From the answer to the work: who rotates snapshots makes one next, and librbd keeps the volume
for up to a second while it removes one."""
DELETES_KEPT_MAX: Final = 1000
"""Ended deletes that can be looked at, per pool: there may be many more of them in a day."""

TRASH_RETENTION_S_MAX: Final = 366 * 24 * 3600
"""A trash that keeps for longer is no trash; its space is not free meanwhile."""

# Scrubs.
SCRUB_INTERVAL_H_DEFAULT: Final = 7 * 24
SCRUB_RATE_BYTES_DEFAULT: Final = 32 * MIB
"""In a second: a tenth of what a slow disk gives; 1 TiB takes nine hours."""

# Audits.
AUDIT_FAULTS_MAX: Final = 10_000
"""Suspicions that one audit of a pool takes up, some 500 bytes each."""
EXPORT_BYTES_MAX: Final = 64 * MIB
"""Of a catalog that is imported, in one commit: below an OSD's osd_max_write_size of 90 MiB."""

# Embedded store.
OVERWRITE_CHUNKS_MAX: Final = 65_536
"""Chunks noted for overwriting, per volume: bounds what recovery reads again (256 GiB)."""

assert CHUNK_SIZE_BYTES % BLOCK_SIZE_BYTES == 0
assert BLOCK_SIZE_BYTES & (BLOCK_SIZE_BYTES - 1) == 0
assert CHUNK_SIZE_BYTES & (CHUNK_SIZE_BYTES - 1) == 0
assert NAME_BYTES_MAX <= 128
assert SERVER_RENEW_S * 3 < SERVER_LEASE_S < FAILOVER_S
assert WARM_CLONES_FIRST <= WARM_CLONES_MAX
assert WARM_DEMAND_S < WARM_HOT_S < WARM_IDLE_S
assert 0 < DELETE_RETRY_S_MIN <= DELETE_RETRY_S_MAX
assert HEALTH_TELL_PERIOD_S <= HEALTH_LOOK_PERIOD_S < HEALTH_SILENCE_S_MAX
assert HEALTH_SILENCE_S_MAX <= HEALTH_MONITORS_SILENCE_S_MAX
assert PAGE_SIZE_DEFAULT <= PAGE_SIZE_MAX
assert FRAME_BYTES_MAX * 2 <= MESSAGE_BYTES_MAX
assert IMAGE_VIRTUAL_SIZE_BYTES_MAX <= VOLUME_SIZE_BYTES_MAX
assert VOLUME_SIZE_BYTES_MAX % CHUNK_SIZE_BYTES == 0
assert NBD_REQUEST_BYTES_MAX <= NBD_IN_FLIGHT_BYTES_MAX
assert LABELS_MAX * (LABEL_KEY_BYTES_MAX + LABEL_VALUE_BYTES_MAX) <= 16 * KIB
