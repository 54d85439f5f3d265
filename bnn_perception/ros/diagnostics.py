"""The node's state as diagnostic_msgs/DiagnosticArray, after REP-107."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnn_perception.ros.latency import Percentiles

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

#: Order of the levels of diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR = 0, 1, 2


@dataclass
class Report:
    """What one diagnostics message says: findings decide its level, values stand below them."""

    name: str
    hardware_id: str
    findings: list[tuple[int, str]] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def find(self, level: int, text: str) -> None:
        """Note something that the user should know."""
        self.findings.append((level, text))

    def add(self, values: Mapping[str, object]) -> None:
        """Add values; numbers with a fraction are shown to three digits after the point."""
        for key, value in values.items():
            self.values[key] = f"{value:.3f}" if isinstance(value, float) else str(value)

    def add_latency(self, summary: Mapping[str, Percentiles]) -> None:
        """Add the percentiles of each stage: ``latency total p95 (ms)``."""
        for stage, percentiles in summary.items():
            self.add({f"latency {stage} {name} (ms)": value for name, value in percentiles._asdict().items()})

    def message(self, stamp: Any) -> DiagnosticArray:
        """As a message; ``stamp`` is a builtin_interfaces Time."""
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

        # The constants of `level` are bytes, as the field is.
        levels = {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR}
        worst_first = sorted(self.findings, key=lambda finding: -finding[0])
        status = DiagnosticStatus(
            level=levels[max((level for level, _ in self.findings), default=OK)],
            name=self.name,
            message="; ".join(text for _, text in worst_first) or "OK",
            hardware_id=self.hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in self.values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = stamp
        return array


def as_mapping(key_values: Iterable[Any]) -> dict[str, str]:
    """The values of a DiagnosticStatus by key."""
    return {item.key: item.value for item in key_values}
