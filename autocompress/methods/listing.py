"""What a method may be listed with: keys and their checks, candidates, baselines, groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_type_hints

from autocompress.errors import MethodError
from autocompress.numerics.rounding import group_length
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.tensors.shapes import aligned_rank
from autocompress.records import LayerSpec

if TYPE_CHECKING:
    from autocompress.methods.base import Method

SMALLEST_GROUP = 2
Listed = Mapping[str, tuple[Any, ...]]  # the values of each key


@dataclass(frozen=True)
class Choice:
    """These values and no others, and words that mean a number."""

    values: tuple[int | str, ...]
    words: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Whole:
    """Whole numbers within bounds."""

    least: int
    most: int | None = None


@dataclass(frozen=True)
class Reader:
    """Whatever a function reads, which raises ``ValueError`` with what is wanted instead."""

    read: Callable[[object], object]


@dataclass(frozen=True)
class Key:
    """A key of a method in a search space file.

    Attributes:
        setting: of the method, which it lists values for.
        values: what may be listed: one of the kinds above, or a type.
        default: what is listed where the key is left out; ``None`` for a key that is required.
        single: whether one value stands there instead of a list.
    """

    setting: str
    values: Any
    default: tuple[Any, ...] | None = None
    single: bool = False


@dataclass(frozen=True)
class Baseline:
    """One setting for every matrix.

    Attributes:
        label: as in ``uniform 3 bit, whole rows``.
        of: the method for a matrix.
    """

    label: str
    of: Callable[[LayerSpec], Any]

    @classmethod
    def alike(cls, label: str, method: Any) -> Baseline:
        """The same method for all."""
        return cls(label, lambda _spec: method)


class Listable:
    """What a method class says of the settings that a search space may list for it.

    This is what it says where a method says nothing itself: every setting is a key of its own, with
    the values to try, and what settings do not go together is left out.
    """

    name: ClassVar[str]

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """Its keys in a search space file."""
        hints = get_type_hints(cls)
        found = {}
        for field in fields(cls):  # type: ignore[arg-type]  # methods are dataclasses
            default = default_of(field)
            found[field.name] = Key(
                field.name, hints[field.name], None if default is ... else (default,)
            )
        return found

    @classmethod
    def check_listed(cls, listed: Listed, given: Collection[str]) -> None:  # noqa: ARG003 - others ask
        """Refuse keys that do not go together.

        Args:
            listed: the values of every key.
            given: the keys that the file has.

        Raises:
            ValueError: they do not; the message is what is wanted instead.
        """
        try:
            possible = any(True for _ in cls.combinations(listed))
        except MethodError as error:
            raise ValueError(f"settings that go together ({error.what}: {error.got})") from error
        if not possible:
            raise ValueError("settings that go together")

    @classmethod
    def combinations(cls, listed: Listed) -> Iterator[Self]:
        """Yield every combination that the method accepts.

        Raises:
            MethodError: it accepts none.
        """
        keys = cls.space_keys()
        settings = [keys[key].setting for key in listed]
        refused: MethodError | None = None
        accepted = False
        for values in itertools.product(*listed.values()):
            try:
                method = cls(**dict(zip(settings, values, strict=True)))
            except MethodError as error:
                refused = error
                continue
            accepted = True
            yield method
        if refused is not None and not accepted:
            raise refused

    @classmethod
    def candidates(cls, listed: Listed, spec: LayerSpec) -> Iterator[Self]:
        """Yield every combination for one matrix; some may not fit it, some may be equal."""
        for method in cls.combinations(listed):
            yield method.offered_to(spec)

    def offered_to(self, spec: LayerSpec) -> Self:  # noqa: ARG002 - only some correct anything
        """The same as it is offered to a matrix: the nearest that it allows."""
        return self

    @classmethod
    def baselines(cls, share: float) -> Iterator[Baseline]:  # noqa: ARG003 - few have any
        """Yield what a person would write for every matrix alike; a search must beat it.

        Args:
            share: of the parameters, which ranks are set by.
        """
        yield from ()

    @classmethod
    def notices(cls, listed: Listed, spec: LayerSpec) -> Iterator[str]:  # noqa: ARG003 - likewise
        """Yield what was corrected to suit one matrix; the space names the matrix."""
        yield from ()


@dataclass(frozen=True)
class Ranks:
    """Ranks as a search space lists them.

    Attributes:
        whole: ranks taken as written.
        fractions: shares of the largest rank, in (0, 1], rounded down to a multiple of 8 where that
            leaves any.
    """

    whole: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()

    @classmethod
    def of(cls, listed: Listed) -> Ranks:
        """Those that ``rank_keys`` list."""
        return cls(listed["ranks"], listed["rank_fractions"])

    @staticmethod
    def check(listed: Listed) -> None:
        """See ``Listable.check_listed``."""
        if not listed["ranks"] and not listed["rank_fractions"]:
            raise ValueError("`ranks`, `rank_fractions`, or both")

    def within(self, largest: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield for every listed rank one per bond or mode, none above the largest of its bond."""
        for rank in self.whole:
            yield tuple(min(rank, most) for most in largest)
        for fraction in self.fractions:
            yield tuple(aligned_rank(fraction * most) for most in largest)

    def notices(self, method: str, largest: int) -> Iterator[str]:
        """Yield which of the whole ranks are lowered to the largest."""
        above = [rank for rank in self.whole if rank > largest]
        if above:
            yield f"{method} {too_high(above)} above the largest, used {largest}"


def too_high(ranks: Sequence[int]) -> str:
    """Ranks as the subject of a sentence: ``ranks 64, 96 are``."""
    noun, verb = ("rank", "is") if len(ranks) == 1 else ("ranks", "are")
    return f"{noun} {', '.join(map(str, ranks))} {verb}"


def default_of(field: Field[Any]) -> Any:
    """The default of a setting, or ``...`` where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return ... if field.default is MISSING else field.default


def _fraction(value: object) -> object:
    if not isinstance(value, float) or not 0 < value <= 1:
        raise ValueError(
            "a share with a decimal point, more than 0.0 and at most 1.0 "
            "(whole ranks go under `ranks`)"
        )
    return value


def _share(value: object) -> object:
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError("a share with a decimal point, between 0.0 and 1.0")
    return value


def _group_size(value: object) -> object:
    if value == "row":
        return 0  # one group
    if not isinstance(value, int) or isinstance(value, bool) or value < SMALLEST_GROUP:
        raise ValueError(f"a whole number from {SMALLEST_GROUP}, or row")
    return value


FRACTION, SHARE, GROUP_SIZE = Reader(_fraction), Reader(_share), Reader(_group_size)
FACTORS = Key("bits", Choice((8, 4), (("none", 0),)), (0,))
GRAMS = Key("gram", Choice(get_args(GramKind)), ("full",))
SYMMETRIC = Key("symmetric", bool, (False,))


def rank_keys(setting: str = "rank") -> dict[str, Key]:
    """Keys of a method that cuts ranks."""
    return {
        "ranks": Key(setting, Whole(1), ()),
        "rank_fractions": Key(setting, FRACTION, ()),
    }


WHOLE_ROW = 0  # the group size that means one group per row
USUAL_GROUP = 64  # what a person would take


def usual_group(columns: int) -> int:
    """The usual group size for rows of so many columns: the whole row, where it divides none."""
    return USUAL_GROUP if columns % USUAL_GROUP == 0 else WHOLE_ROW


def named_group(columns: int, group_size: int) -> int:
    """The group size by its one name: a group as long as the row *is* the whole row."""
    return WHOLE_ROW if group_size == columns else group_size


def check_group(method: Method, spec: LayerSpec, group_size: int) -> None:
    """Check that groups divide the rows of a matrix.

    Raises:
        MethodError: they do not; the message names those that do.
    """
    try:
        group_length(spec.in_features, group_size)
    except MethodError as error:
        raise error.within(f"layer {spec}, {method}") from error


def group_label(group_size: int) -> str:
    """Short label of a group size: ``g64``, or ``row``."""
    return f"g{group_size}" if group_size else "row"
