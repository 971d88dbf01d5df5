"""The parts of every section of settings: the frozen base, types of numbers, and the mark of a setting that needs another."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Mark = TypeVar("Mark")


class Needs:
    """Marks a setting that has no effect unless another one of its section has one of these values, or is on.

    Example: `sapo_up: Annotated[Positive, Needs("surrogate", "sapo")] = 1.0` is refused with any other surrogate.
    """

    def __init__(self, setting: str, *values: str) -> None:
        self.setting, self.values = setting, values

    def met_by(self, section: "Section") -> bool:
        """True where the other setting lets the marked one act."""
        value = getattr(section, self.setting)
        return value in self.values if self.values else section.is_on(self.setting)

    def bound(self, section: "type[Section]") -> str:
        """The words " above 0" where the other setting is a number that must be on, else none."""
        return "" if self.values or section.model_fields[self.setting].annotation is str else " above 0"

    def __str__(self) -> str:
        *others, last = self.values or ("",)
        listed = f"{', '.join(others)} or {last}" if others else last
        return f"{self.setting}={listed}" if self.values else self.setting


class Section(BaseModel):
    """A frozen group of settings; the string under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )
    prefix: ClassVar[str] = ""
    """Dotted name of the section in messages on `Needs`."""

    @classmethod
    def marked(cls, kind: type[Mark]) -> dict[str, Mark]:
        """The marks of this kind by the name of the setting that has one."""
        marks = ((key, mark) for key, field in cls.model_fields.items() for mark in field.metadata)
        return {key: mark for key, mark in marks if isinstance(mark, kind)}

    def is_on(self, key: str) -> bool:
        """True where a number acts, since it is above 0, or a text, since it is there."""
        value = getattr(self, key)
        return bool(value) if isinstance(value, str) else bool(value > 0)

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        idle: dict[str, list[str]] = {}
        """By the setting that is missing."""
        for key, needs in self.marked(Needs).items():
            if getattr(self, key) != type(self).model_fields[key].default and not needs.met_by(self):
                other = f"{self.prefix}.{needs}{needs.bound(type(self))}"
                idle.setdefault(other, []).append(f"{self.prefix}.{key}")
        for other, (*keys, last) in idle.items():
            if not keys:
                raise ValueError(f"{last} has no effect without {other}; remove one")
            raise ValueError(f"{', '.join(keys)} and {last} have no effect without {other}; remove them, or set it")
        return self


def subsection(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of the section of this name; None if it is a single setting, or none at all."""
    annotation = kind.model_fields[name].annotation if name in kind.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def walk(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """(dotted key, class of the section that has it, name there) of every setting, sections included."""
    for name in kind.model_fields:
        yield prefix + name, kind, name
        if section := subsection(kind, name):
            yield from walk(section, f"{prefix}{name}.")
