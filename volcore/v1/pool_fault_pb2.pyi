from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PoolFault(_message.Message):
    __slots__ = ("kind", "concerns", "meaning", "remedy", "repairable", "repaired")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONCERNS_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    REPAIRABLE_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    concerns: str
    meaning: str
    remedy: str
    repairable: bool
    repaired: bool
    def __init__(self, kind: _Optional[str] = ..., concerns: _Optional[str] = ..., meaning: _Optional[str] = ..., remedy: _Optional[str] = ..., repairable: _Optional[bool] = ..., repaired: _Optional[bool] = ...) -> None: ...
