import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SourceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_KIND_UNSPECIFIED: _ClassVar[SourceKind]
    SOURCE_KIND_IMAGE: _ClassVar[SourceKind]
    SOURCE_KIND_SNAPSHOT: _ClassVar[SourceKind]
    SOURCE_KIND_VOLUME: _ClassVar[SourceKind]

class VolumeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VOLUME_STATE_UNSPECIFIED: _ClassVar[VolumeState]
    VOLUME_STATE_READY: _ClassVar[VolumeState]
    VOLUME_STATE_DELETED: _ClassVar[VolumeState]

class VolumeView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VOLUME_VIEW_UNSPECIFIED: _ClassVar[VolumeView]
    VOLUME_VIEW_BASIC: _ClassVar[VolumeView]
    VOLUME_VIEW_FULL: _ClassVar[VolumeView]
SOURCE_KIND_UNSPECIFIED: SourceKind
SOURCE_KIND_IMAGE: SourceKind
SOURCE_KIND_SNAPSHOT: SourceKind
SOURCE_KIND_VOLUME: SourceKind
VOLUME_STATE_UNSPECIFIED: VolumeState
VOLUME_STATE_READY: VolumeState
VOLUME_STATE_DELETED: VolumeState
VOLUME_VIEW_UNSPECIFIED: VolumeView
VOLUME_VIEW_BASIC: VolumeView
VOLUME_VIEW_FULL: VolumeView

class Volume(_message.Message):
    __slots__ = ("name", "uid", "size_bytes", "source", "labels", "create_time", "etag", "state", "allocated_bytes", "depth", "backend_name", "exclusive_bytes", "delete_time", "purge_time")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_NAME_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    PURGE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    size_bytes: int
    source: VolumeSource
    labels: _containers.ScalarMap[str, str]
    create_time: _timestamp_pb2.Timestamp
    etag: str
    state: VolumeState
    allocated_bytes: int
    depth: int
    backend_name: str
    exclusive_bytes: int
    delete_time: _timestamp_pb2.Timestamp
    purge_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., source: _Optional[_Union[VolumeSource, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., state: _Optional[_Union[VolumeState, str]] = ..., allocated_bytes: _Optional[int] = ..., depth: _Optional[int] = ..., backend_name: _Optional[str] = ..., exclusive_bytes: _Optional[int] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., purge_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class VolumeSource(_message.Message):
    __slots__ = ("kind", "name", "uid")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    kind: SourceKind
    name: str
    uid: str
    def __init__(self, kind: _Optional[_Union[SourceKind, str]] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ...) -> None: ...
