from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdoptableImage(_message.Message):
    __slots__ = ("backend_name", "size_bytes", "snapshots", "adoptable", "obstacle", "detail")
    BACKEND_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    ADOPTABLE_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    backend_name: str
    size_bytes: int
    snapshots: _containers.RepeatedCompositeFieldContainer[AdoptableSnapshot]
    adoptable: bool
    obstacle: str
    detail: str
    def __init__(self, backend_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., snapshots: _Optional[_Iterable[_Union[AdoptableSnapshot, _Mapping]]] = ..., adoptable: _Optional[bool] = ..., obstacle: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class AdoptableSnapshot(_message.Message):
    __slots__ = ("backend_name", "size_bytes")
    BACKEND_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    backend_name: str
    size_bytes: int
    def __init__(self, backend_name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...
