from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DamageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DAMAGE_KIND_UNSPECIFIED: _ClassVar[DamageKind]
    DAMAGE_KIND_CHECKSUM: _ClassVar[DamageKind]
    DAMAGE_KIND_MISSING: _ClassVar[DamageKind]
    DAMAGE_KIND_UNREADABLE: _ClassVar[DamageKind]
    DAMAGE_KIND_MAP: _ClassVar[DamageKind]
    DAMAGE_KIND_CHAIN: _ClassVar[DamageKind]
    DAMAGE_KIND_DATABASE: _ClassVar[DamageKind]
DAMAGE_KIND_UNSPECIFIED: DamageKind
DAMAGE_KIND_CHECKSUM: DamageKind
DAMAGE_KIND_MISSING: DamageKind
DAMAGE_KIND_UNREADABLE: DamageKind
DAMAGE_KIND_MAP: DamageKind
DAMAGE_KIND_CHAIN: DamageKind
DAMAGE_KIND_DATABASE: DamageKind

class Check(_message.Message):
    __slots__ = ("heal", "checked_bytes", "bad_block_count", "healed_block_count", "damage", "damage_count")
    HEAL_FIELD_NUMBER: _ClassVar[int]
    CHECKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BAD_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEALED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    heal: bool
    checked_bytes: int
    bad_block_count: int
    healed_block_count: int
    damage: _containers.RepeatedCompositeFieldContainer[DamagedBlocks]
    damage_count: int
    def __init__(self, heal: _Optional[bool] = ..., checked_bytes: _Optional[int] = ..., bad_block_count: _Optional[int] = ..., healed_block_count: _Optional[int] = ..., damage: _Optional[_Iterable[_Union[DamagedBlocks, _Mapping]]] = ..., damage_count: _Optional[int] = ...) -> None: ...

class DamagedBlocks(_message.Message):
    __slots__ = ("kind", "names", "name_count", "offset_bytes", "length_bytes", "layer", "healed", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NAME_COUNT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: DamageKind
    names: _containers.RepeatedScalarFieldContainer[str]
    name_count: int
    offset_bytes: int
    length_bytes: int
    layer: int
    healed: bool
    detail: str
    def __init__(self, kind: _Optional[_Union[DamageKind, str]] = ..., names: _Optional[_Iterable[str]] = ..., name_count: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., layer: _Optional[int] = ..., healed: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
