import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachmentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTACHMENT_STATE_UNSPECIFIED: _ClassVar[AttachmentState]
    ATTACHMENT_STATE_ACTIVE: _ClassVar[AttachmentState]
    ATTACHMENT_STATE_STANDBY: _ClassVar[AttachmentState]

class AccessMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_MODE_UNSPECIFIED: _ClassVar[AccessMode]
    ACCESS_MODE_READ_WRITE: _ClassVar[AccessMode]
    ACCESS_MODE_READ_ONLY: _ClassVar[AccessMode]
    ACCESS_MODE_READ_WRITE_SHARED: _ClassVar[AccessMode]
ATTACHMENT_STATE_UNSPECIFIED: AttachmentState
ATTACHMENT_STATE_ACTIVE: AttachmentState
ATTACHMENT_STATE_STANDBY: AttachmentState
ACCESS_MODE_UNSPECIFIED: AccessMode
ACCESS_MODE_READ_WRITE: AccessMode
ACCESS_MODE_READ_ONLY: AccessMode
ACCESS_MODE_READ_WRITE_SHARED: AccessMode

class Attachment(_message.Message):
    __slots__ = ("name", "host", "access_mode", "create_time", "state", "hand_over_from", "client_addresses", "nbd", "rbd")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ACCESS_MODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FROM_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NBD_FIELD_NUMBER: _ClassVar[int]
    RBD_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    access_mode: AccessMode
    create_time: _timestamp_pb2.Timestamp
    state: AttachmentState
    hand_over_from: str
    client_addresses: _containers.RepeatedScalarFieldContainer[str]
    nbd: NbdConnection
    rbd: RbdConnection
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., access_mode: _Optional[_Union[AccessMode, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[AttachmentState, str]] = ..., hand_over_from: _Optional[str] = ..., client_addresses: _Optional[_Iterable[str]] = ..., nbd: _Optional[_Union[NbdConnection, _Mapping]] = ..., rbd: _Optional[_Union[RbdConnection, _Mapping]] = ...) -> None: ...

class NbdConnection(_message.Message):
    __slots__ = ("uri", "export_name", "socket_path", "host", "port", "tls_hostname")
    URI_FIELD_NUMBER: _ClassVar[int]
    EXPORT_NAME_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TLS_HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    uri: str
    export_name: str
    socket_path: str
    host: str
    port: int
    tls_hostname: str
    def __init__(self, uri: _Optional[str] = ..., export_name: _Optional[str] = ..., socket_path: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., tls_hostname: _Optional[str] = ...) -> None: ...

class RbdConnection(_message.Message):
    __slots__ = ("cluster_fsid", "monitors", "pool", "image", "user", "conf_path", "secret_uuid")
    CLUSTER_FSID_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CONF_PATH_FIELD_NUMBER: _ClassVar[int]
    SECRET_UUID_FIELD_NUMBER: _ClassVar[int]
    cluster_fsid: str
    monitors: _containers.RepeatedScalarFieldContainer[str]
    pool: str
    image: str
    user: str
    conf_path: str
    secret_uuid: str
    def __init__(self, cluster_fsid: _Optional[str] = ..., monitors: _Optional[_Iterable[str]] = ..., pool: _Optional[str] = ..., image: _Optional[str] = ..., user: _Optional[str] = ..., conf_path: _Optional[str] = ..., secret_uuid: _Optional[str] = ...) -> None: ...
