from volcore.v1 import operation_pb2 as _operation_pb2
from volcore.v1 import pool_pb2 as _pool_pb2
from volcore.v1 import pool_fault_pb2 as _pool_fault_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetPoolRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPoolResponse(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: _pool_pb2.Pool
    def __init__(self, pool: _Optional[_Union[_pool_pb2.Pool, _Mapping]] = ...) -> None: ...

class ListPoolsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPoolsResponse(_message.Message):
    __slots__ = ("pools", "next_page_token")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[_pool_pb2.Pool]
    next_page_token: str
    def __init__(self, pools: _Optional[_Iterable[_Union[_pool_pb2.Pool, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ScrubPoolRequest(_message.Message):
    __slots__ = ("name", "heal", "max_rate_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEAL_FIELD_NUMBER: _ClassVar[int]
    MAX_RATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    heal: bool
    max_rate_bytes: int
    def __init__(self, name: _Optional[str] = ..., heal: _Optional[bool] = ..., max_rate_bytes: _Optional[int] = ...) -> None: ...

class ScrubPoolResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_pb2.Operation, _Mapping]] = ...) -> None: ...

class CheckPoolRequest(_message.Message):
    __slots__ = ("name", "repair", "objects")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    repair: bool
    objects: bool
    def __init__(self, name: _Optional[str] = ..., repair: _Optional[bool] = ..., objects: _Optional[bool] = ...) -> None: ...

class CheckPoolResponse(_message.Message):
    __slots__ = ("fault", "end")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    fault: _pool_fault_pb2.PoolFault
    end: CheckPoolEnd
    def __init__(self, fault: _Optional[_Union[_pool_fault_pb2.PoolFault, _Mapping]] = ..., end: _Optional[_Union[CheckPoolEnd, _Mapping]] = ...) -> None: ...

class CheckPoolEnd(_message.Message):
    __slots__ = ("record_count", "stored_count", "truncated")
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    record_count: int
    stored_count: int
    truncated: bool
    def __init__(self, record_count: _Optional[int] = ..., stored_count: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...

class ExportCatalogRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExportCatalogResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ImportCatalogRequest(_message.Message):
    __slots__ = ("name", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportCatalogResponse(_message.Message):
    __slots__ = ("record_count",)
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    record_count: int
    def __init__(self, record_count: _Optional[int] = ...) -> None: ...

class RebuildCatalogRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RebuildCatalogResponse(_message.Message):
    __slots__ = ("fault", "end")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    fault: _pool_fault_pb2.PoolFault
    end: RebuildCatalogEnd
    def __init__(self, fault: _Optional[_Union[_pool_fault_pb2.PoolFault, _Mapping]] = ..., end: _Optional[_Union[RebuildCatalogEnd, _Mapping]] = ...) -> None: ...

class RebuildCatalogEnd(_message.Message):
    __slots__ = ("record_count", "stored_count")
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    record_count: int
    stored_count: int
    def __init__(self, record_count: _Optional[int] = ..., stored_count: _Optional[int] = ...) -> None: ...
