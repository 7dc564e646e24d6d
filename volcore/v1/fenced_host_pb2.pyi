import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FencedHostState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FENCED_HOST_STATE_UNSPECIFIED: _ClassVar[FencedHostState]
    FENCED_HOST_STATE_FENCING: _ClassVar[FencedHostState]
    FENCED_HOST_STATE_FENCED: _ClassVar[FencedHostState]
FENCED_HOST_STATE_UNSPECIFIED: FencedHostState
FENCED_HOST_STATE_FENCING: FencedHostState
FENCED_HOST_STATE_FENCED: FencedHostState

class FencedHost(_message.Message):
    __slots__ = ("name", "host", "state", "client_addresses", "volumes", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    state: FencedHostState
    client_addresses: _containers.RepeatedScalarFieldContainer[str]
    volumes: _containers.RepeatedScalarFieldContainer[str]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., state: _Optional[_Union[FencedHostState, str]] = ..., client_addresses: _Optional[_Iterable[str]] = ..., volumes: _Optional[_Iterable[str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FencePlan(_message.Message):
    __slots__ = ("clients", "attachments", "other_volumes", "spared_clients", "volumes_without_clients", "etag")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    OTHER_VOLUMES_FIELD_NUMBER: _ClassVar[int]
    SPARED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_WITHOUT_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[FencedClient]
    attachments: _containers.RepeatedScalarFieldContainer[str]
    other_volumes: _containers.RepeatedScalarFieldContainer[str]
    spared_clients: _containers.RepeatedCompositeFieldContainer[FencedClient]
    volumes_without_clients: _containers.RepeatedScalarFieldContainer[str]
    etag: str
    def __init__(self, clients: _Optional[_Iterable[_Union[FencedClient, _Mapping]]] = ..., attachments: _Optional[_Iterable[str]] = ..., other_volumes: _Optional[_Iterable[str]] = ..., spared_clients: _Optional[_Iterable[_Union[FencedClient, _Mapping]]] = ..., volumes_without_clients: _Optional[_Iterable[str]] = ..., etag: _Optional[str] = ...) -> None: ...

class FencedClient(_message.Message):
    __slots__ = ("address", "declared", "volumes")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    address: str
    declared: bool
    volumes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, address: _Optional[str] = ..., declared: _Optional[bool] = ..., volumes: _Optional[_Iterable[str]] = ...) -> None: ...
