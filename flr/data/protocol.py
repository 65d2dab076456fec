"""The protocol of a number: what it was measured on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What a number was measured on. Numbers of different protocols never share a column.

    Attributes:
        form: the on-disk form.
        scheme: the landmark scheme's name.
        normaliser: the scheme's default.
        policy: the box policy.
        held_out: part -> the share of the training faces that it was made of, where the set itself gives no such part.
        counts: faces per split after skips.
        fingerprint: of the table.
    """

    form: str
    scheme: str
    normaliser: str
    policy: str
    held_out: dict[str, float]
    counts: dict[str, int]
    fingerprint: str

    @property
    def name(self) -> str:
        """Readable, and different where the numbers must not be compared."""
        counts = "/".join(str(self.counts[part]) for part in ("train", "val", "test"))
        return f"{self.form} {self.scheme} {counts} {self.policy} {self.normaliser} {self.fingerprint}"
