"""What a verify or a scrub has found, as it is kept in records."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from volcore.limits import BLOCK_SIZE_BYTES

FINDINGS_MAX: Final = 100
"""Findings that a record lists; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Neighbouring bad blocks, or other damage (with an empty range)."""

    kind: str
    """A word of `volcore.backends.contract.DamageKind`."""
    layer: int
    offset_bytes: int
    length_bytes: int
    names: tuple[str, ...]
    """Resource names of what sees it; a bounded selection."""
    name_count: int
    healed: bool
    detail: str = ""

    @property
    def block_count(self) -> int:
        """How many blocks it counts for; damage without a range counts as one."""
        return max(1, self.length_bytes // BLOCK_SIZE_BYTES)

    @property
    def end_bytes(self) -> int:
        """First offset after it."""
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was asked of a verify or scrub, how far it is, and what it has found."""

    heal: bool
    bytes_per_s_max: int = 0
    cursor: str = ""
    """Where it goes on after a restart."""
    checked_bytes: int = 0
    bad_blocks: int = 0
    """Blocks found bad, healed ones included."""
    healed_blocks: int = 0
    findings: tuple[Finding, ...] = ()
    """The first FINDINGS_MAX."""
    finding_count: int = 0

    @property
    def damaged_blocks(self) -> int:
        """Blocks that are still bad."""
        return self.bad_blocks - self.healed_blocks

    def plus(self, finding: Finding) -> "Check":
        """Return this with one more finding; one that continues the last is joined with it."""
        found, count = self.findings, self.finding_count
        if found and continues(found[-1], finding):
            length_bytes = found[-1].length_bytes + finding.length_bytes
            found = (*found[:-1], replace(found[-1], length_bytes=length_bytes))
        else:
            found = (*found, finding)[:FINDINGS_MAX]
            count += 1
        return replace(
            self,
            findings=found,
            finding_count=count,
            bad_blocks=self.bad_blocks + finding.block_count,
            healed_blocks=self.healed_blocks + (finding.block_count if finding.healed else 0),
        )


def continues(first: Finding, second: Finding) -> bool:
    """Tell whether two findings are one."""
    return bool(second.length_bytes) and second == replace(
        first, offset_bytes=first.end_bytes, length_bytes=second.length_bytes
    )


def without(findings: Iterable[Finding], gone: Iterable[Finding]) -> list[Finding]:
    """Return `findings` less the ranges of `gone`, layer by layer."""
    left = list(findings)
    for hole in gone:
        cut: list[Finding] = []
        for one in left:
            apart = one.end_bytes <= hole.offset_bytes or hole.end_bytes <= one.offset_bytes
            if one.layer != hole.layer or apart or not one.length_bytes:
                cut += [] if same(one, hole) else [one]
                continue
            before = hole.offset_bytes - one.offset_bytes
            after = one.end_bytes - hole.end_bytes
            if before > 0:
                cut.append(replace(one, length_bytes=before))
            if after > 0:
                cut.append(replace(one, offset_bytes=hole.end_bytes, length_bytes=after))
        left = cut
    return left


def same(one: Finding, other: Finding) -> bool:
    """Tell whether two findings are of the same place."""
    key = one.kind, one.layer, one.offset_bytes, one.length_bytes, one.detail
    return key == (other.kind, other.layer, other.offset_bytes, other.length_bytes, other.detail)
