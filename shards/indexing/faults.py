"""What is wrong with an input, told together: the first reasons, and how many there are."""

from collections.abc import Iterable, Sequence

from shards.errors import UserError

MAX_TOLD = 20
"""Faults that are told one by one."""


class Faults:
    """The first 20 faults, and how many there are."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        """Take one more."""
        self.add_many([text], 1)

    def add_many(self, texts: Iterable[str], count: int) -> None:
        """Take some more, of which the first may stand for all."""
        self.count += count
        for text in texts:
            if len(self.told) < MAX_TOLD:
                self.told.append(text)

    def refuse(self, what: str) -> None:
        """Raise if there was any.

        Raises:
            RefusedError: its message one line, of the one fault or, `what` saying of what, of their count.
        """
        if self.count:
            text = self.told[0] if self.count == 1 else f"{self.count} {what}"
            raise RefusedError(text, [] if self.count == 1 else self.told)


class RefusedError(UserError):
    """Input that cannot be used, for more than one reason maybe.

    Attributes:
        faults: a line for each of the first 20 reasons where there are several.
    """

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = faults

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[str, Sequence[str]]]:
        return type(self), (str(self), self.faults)
