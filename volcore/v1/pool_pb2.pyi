from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pool(_message.Message):
    __slots__ = ("name", "backend", "capabilities", "capacity_bytes", "available_bytes", "allocated_bytes", "provisioned_bytes", "volume_count", "image_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROVISIONED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    capabilities: PoolCapabilities
    capacity_bytes: int
    available_bytes: int
    allocated_bytes: int
    provisioned_bytes: int
    volume_count: int
    image_count: int
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., capabilities: _Optional[_Union[PoolCapabilities, _Mapping]] = ..., capacity_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., provisioned_bytes: _Optional[int] = ..., volume_count: _Optional[int] = ..., image_count: _Optional[int] = ...) -> None: ...

class PoolCapabilities(_message.Message):
    __slots__ = ("block_size_bytes", "depth_max", "snapshots_max", "checksums", "flatten", "revert", "connection")
    BLOCK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_MAX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_MAX_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    FLATTEN_FIELD_NUMBER: _ClassVar[int]
    REVERT_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    block_size_bytes: int
    depth_max: int
    snapshots_max: int
    checksums: bool
    flatten: bool
    revert: bool
    connection: str
    def __init__(self, block_size_bytes: _Optional[int] = ..., depth_max: _Optional[int] = ..., snapshots_max: _Optional[int] = ..., checksums: _Optional[bool] = ..., flatten: _Optional[bool] = ..., revert: _Optional[bool] = ..., connection: _Optional[str] = ...) -> None: ...
