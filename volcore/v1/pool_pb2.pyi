import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from volcore.v1 import check_pb2 as _check_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pool(_message.Message):
    __slots__ = ("name", "backend", "capabilities", "capacity_bytes", "available_bytes", "allocated_bytes", "provisioned_bytes", "volume_count", "image_count", "health", "short_path", "warm_clones", "deleted_volume_count", "trash_retention")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROVISIONED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    SHORT_PATH_FIELD_NUMBER: _ClassVar[int]
    WARM_CLONES_FIELD_NUMBER: _ClassVar[int]
    DELETED_VOLUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRASH_RETENTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    capabilities: PoolCapabilities
    capacity_bytes: int
    available_bytes: int
    allocated_bytes: int
    provisioned_bytes: int
    volume_count: int
    image_count: int
    health: PoolHealth
    short_path: PoolShortPath
    warm_clones: PoolWarmClones
    deleted_volume_count: int
    trash_retention: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., capabilities: _Optional[_Union[PoolCapabilities, _Mapping]] = ..., capacity_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., provisioned_bytes: _Optional[int] = ..., volume_count: _Optional[int] = ..., image_count: _Optional[int] = ..., health: _Optional[_Union[PoolHealth, _Mapping]] = ..., short_path: _Optional[_Union[PoolShortPath, _Mapping]] = ..., warm_clones: _Optional[_Union[PoolWarmClones, _Mapping]] = ..., deleted_volume_count: _Optional[int] = ..., trash_retention: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PoolWarmClones(_message.Message):
    __slots__ = ("ready_count", "target_count", "count_max")
    READY_COUNT_FIELD_NUMBER: _ClassVar[int]
    TARGET_COUNT_FIELD_NUMBER: _ClassVar[int]
    COUNT_MAX_FIELD_NUMBER: _ClassVar[int]
    ready_count: int
    target_count: int
    count_max: int
    def __init__(self, ready_count: _Optional[int] = ..., target_count: _Optional[int] = ..., count_max: _Optional[int] = ...) -> None: ...

class PoolShortPath(_message.Message):
    __slots__ = ("state", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[PoolShortPath.State]
        STATE_OFF: _ClassVar[PoolShortPath.State]
        STATE_PROVING: _ClassVar[PoolShortPath.State]
        STATE_ON: _ClassVar[PoolShortPath.State]
        STATE_REFUSED: _ClassVar[PoolShortPath.State]
    STATE_UNSPECIFIED: PoolShortPath.State
    STATE_OFF: PoolShortPath.State
    STATE_PROVING: PoolShortPath.State
    STATE_ON: PoolShortPath.State
    STATE_REFUSED: PoolShortPath.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    state: PoolShortPath.State
    detail: str
    def __init__(self, state: _Optional[_Union[PoolShortPath.State, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class PoolHealth(_message.Message):
    __slots__ = ("damaged_block_count", "damage", "last_scrub_time", "last_scrub_duration", "last_scrub_checked_bytes")
    DAMAGED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_SCRUB_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_SCRUB_DURATION_FIELD_NUMBER: _ClassVar[int]
    LAST_SCRUB_CHECKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    damaged_block_count: int
    damage: _containers.RepeatedCompositeFieldContainer[_check_pb2.DamagedBlocks]
    last_scrub_time: _timestamp_pb2.Timestamp
    last_scrub_duration: _duration_pb2.Duration
    last_scrub_checked_bytes: int
    def __init__(self, damaged_block_count: _Optional[int] = ..., damage: _Optional[_Iterable[_Union[_check_pb2.DamagedBlocks, _Mapping]]] = ..., last_scrub_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_scrub_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_scrub_checked_bytes: _Optional[int] = ...) -> None: ...

class PoolCapabilities(_message.Message):
    __slots__ = ("block_size_bytes", "depth_max", "snapshots_max", "checksums", "flatten", "revert", "connection", "group_snapshot", "verify", "diff", "adopt")
    BLOCK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_MAX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_MAX_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    FLATTEN_FIELD_NUMBER: _ClassVar[int]
    REVERT_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    GROUP_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    DIFF_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    block_size_bytes: int
    depth_max: int
    snapshots_max: int
    checksums: bool
    flatten: bool
    revert: bool
    connection: str
    group_snapshot: bool
    verify: bool
    diff: bool
    adopt: bool
    def __init__(self, block_size_bytes: _Optional[int] = ..., depth_max: _Optional[int] = ..., snapshots_max: _Optional[int] = ..., checksums: _Optional[bool] = ..., flatten: _Optional[bool] = ..., revert: _Optional[bool] = ..., connection: _Optional[str] = ..., group_snapshot: _Optional[bool] = ..., verify: _Optional[bool] = ..., diff: _Optional[bool] = ..., adopt: _Optional[bool] = ...) -> None: ...
