from volcore.v1 import fenced_host_pb2 as _fenced_host_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FenceHostRequest(_message.Message):
    __slots__ = ("parent", "host", "client_addresses", "validate_only", "etag", "host_is_off")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    HOST_IS_OFF_FIELD_NUMBER: _ClassVar[int]
    parent: str
    host: str
    client_addresses: _containers.RepeatedScalarFieldContainer[str]
    validate_only: bool
    etag: str
    host_is_off: bool
    def __init__(self, parent: _Optional[str] = ..., host: _Optional[str] = ..., client_addresses: _Optional[_Iterable[str]] = ..., validate_only: _Optional[bool] = ..., etag: _Optional[str] = ..., host_is_off: _Optional[bool] = ...) -> None: ...

class FenceHostResponse(_message.Message):
    __slots__ = ("fenced_host", "plan")
    FENCED_HOST_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    fenced_host: _fenced_host_pb2.FencedHost
    plan: _fenced_host_pb2.FencePlan
    def __init__(self, fenced_host: _Optional[_Union[_fenced_host_pb2.FencedHost, _Mapping]] = ..., plan: _Optional[_Union[_fenced_host_pb2.FencePlan, _Mapping]] = ...) -> None: ...

class UnfenceHostRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnfenceHostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFencedHostRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetFencedHostResponse(_message.Message):
    __slots__ = ("fenced_host",)
    FENCED_HOST_FIELD_NUMBER: _ClassVar[int]
    fenced_host: _fenced_host_pb2.FencedHost
    def __init__(self, fenced_host: _Optional[_Union[_fenced_host_pb2.FencedHost, _Mapping]] = ...) -> None: ...

class ListFencedHostsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFencedHostsResponse(_message.Message):
    __slots__ = ("fenced_hosts", "next_page_token")
    FENCED_HOSTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    fenced_hosts: _containers.RepeatedCompositeFieldContainer[_fenced_host_pb2.FencedHost]
    next_page_token: str
    def __init__(self, fenced_hosts: _Optional[_Iterable[_Union[_fenced_host_pb2.FencedHost, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
