import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from volcore.v1 import check_pb2 as _check_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_PHASE_UNSPECIFIED: _ClassVar[OperationPhase]
    OPERATION_PHASE_QUEUED: _ClassVar[OperationPhase]
    OPERATION_PHASE_RUNNING: _ClassVar[OperationPhase]
    OPERATION_PHASE_SUCCEEDED: _ClassVar[OperationPhase]
    OPERATION_PHASE_FAILED: _ClassVar[OperationPhase]
    OPERATION_PHASE_CANCELLED: _ClassVar[OperationPhase]
OPERATION_PHASE_UNSPECIFIED: OperationPhase
OPERATION_PHASE_QUEUED: OperationPhase
OPERATION_PHASE_RUNNING: OperationPhase
OPERATION_PHASE_SUCCEEDED: OperationPhase
OPERATION_PHASE_FAILED: OperationPhase
OPERATION_PHASE_CANCELLED: OperationPhase

class Operation(_message.Message):
    __slots__ = ("name", "action", "target", "phase", "done_bytes", "total_bytes", "error", "create_time", "end_time", "cancel_requested", "check", "obstacle")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: str
    target: str
    phase: OperationPhase
    done_bytes: int
    total_bytes: int
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    cancel_requested: bool
    check: _check_pb2.Check
    obstacle: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., phase: _Optional[_Union[OperationPhase, str]] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cancel_requested: _Optional[bool] = ..., check: _Optional[_Union[_check_pb2.Check, _Mapping]] = ..., obstacle: _Optional[str] = ...) -> None: ...
