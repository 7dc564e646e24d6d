import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Snapshot(_message.Message):
    __slots__ = ("name", "uid", "size_bytes", "labels", "create_time", "backend_name", "group_snapshot")
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
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_NAME_FIELD_NUMBER: _ClassVar[int]
    GROUP_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    size_bytes: int
    labels: _containers.ScalarMap[str, str]
    create_time: _timestamp_pb2.Timestamp
    backend_name: str
    group_snapshot: str
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., backend_name: _Optional[str] = ..., group_snapshot: _Optional[str] = ...) -> None: ...

class SnapshotExtent(_message.Message):
    __slots__ = ("offset_bytes", "length_bytes", "kind")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[SnapshotExtent.Kind]
        KIND_DATA: _ClassVar[SnapshotExtent.Kind]
        KIND_ZERO: _ClassVar[SnapshotExtent.Kind]
    KIND_UNSPECIFIED: SnapshotExtent.Kind
    KIND_DATA: SnapshotExtent.Kind
    KIND_ZERO: SnapshotExtent.Kind
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    length_bytes: int
    kind: SnapshotExtent.Kind
    def __init__(self, offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., kind: _Optional[_Union[SnapshotExtent.Kind, str]] = ...) -> None: ...
