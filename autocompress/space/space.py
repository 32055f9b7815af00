"""The space of plans: which methods may store which matrix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

from autocompress.errors import ConfigurationError, MethodError
from autocompress.methods.base import Method, repair_notice
from autocompress.methods.keep import Keep
from autocompress.methods.target import Target
from autocompress.records import LayerSpec, Role
from autocompress.space.family import Family
from autocompress.space.selection import EVERYTHING, Selection
from autocompress.surgery.native import NATIVE


@dataclass(frozen=True)
class Match:
    """Selects matrices; every selector that is given must hold, and within one selector any entry.

    Attributes:
        names: shell globs over the layer's name (``*`` also runs over dots) or a name tied to it.
        roles: what the matrix does.
        parts: of the transformer, see ``Role.part``.
        depths: indices of transformer blocks.
    """

    names: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    parts: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()

    def matches(self, spec: LayerSpec) -> bool:
        """Whether a matrix is selected."""
        return (
            (
                not self.names
                or any(fnmatchcase(n, glob) for n in (spec.name, *spec.tied) for glob in self.names)
            )
            and (not self.roles or spec.role in self.roles)
            and (not self.parts or spec.role.part in self.parts)
            and (not self.depths or spec.depth in self.depths)
        )

    def __str__(self) -> str:
        selectors = {
            "names": self.names,
            "roles": self.roles,
            "parts": self.parts,
            "depths": self.depths,
        }
        return ", ".join(
            f"{key} {' '.join(map(str, values))}" for key, values in selectors.items() if values
        )


@dataclass(frozen=True)
class Rule:
    """What the matrices of one match may take. Only the first rule that matches a matrix counts.

    Attributes:
        match: which matrices.
        methods: names of the families allowed, ``keep`` among them; ``None`` allows all of the
            space.
        min_bits: fewest bits of any code.
        min_rank_fraction: smallest share of a full rank.
        max_ratio: most times smaller than the kept matrix.
        pin: the one method to take.
        optional: may match nothing in a model.
        line: where it stands in its file, for messages.
    """

    match: Match
    methods: tuple[str, ...] | None = None
    min_bits: int | None = None
    min_rank_fraction: float | None = None
    max_ratio: float | None = None
    pin: Method | None = None
    optional: bool = False
    line: int | None = field(default=None, compare=False)

    def allows(self, method: Method, spec: LayerSpec) -> bool:
        """Whether a method of the menu passes the restrictions."""
        bits, fraction = method.bits_per_element, method.rank_share(spec)
        return (
            (self.methods is None or method.name in self.methods)
            and (self.min_bits is None or bits is None or bits >= self.min_bits)
            and (
                self.min_rank_fraction is None
                or fraction is None
                or fraction >= self.min_rank_fraction
            )
            and (self.max_ratio is None or Keep().cost(spec) <= self.max_ratio * method.cost(spec))
        )


@dataclass(frozen=True)
class UnmatchedRule:
    """A rule that selects no matrix of a model, and the names nearest to what it asks for."""

    rule: Rule
    nearest: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Matrices that take one method: of the given roles in each block, or all that match a name."""

    roles: tuple[Role, ...] = ()
    names: tuple[str, ...] = ()

    def members(self, specs: Iterable[LayerSpec]) -> Iterator[tuple[LayerSpec, ...]]:
        """Yield the sets of at least two matrices that are tied."""
        by_depth: dict[int | None, list[LayerSpec]] = {}
        selected = Match(names=self.names, roles=self.roles)
        for spec in filter(selected.matches, specs):
            by_depth.setdefault(spec.depth if self.roles else None, []).append(spec)
        yield from (tuple(members) for members in by_depth.values() if len(members) > 1)


@dataclass(frozen=True)
class Space:
    """All plans that a search may propose.

    Attributes:
        name: what a person calls it.
        families: methods and settings on offer.
        keep: whether a matrix may stay as it is, unless a rule says otherwise.
        rules: exceptions, in order.
        groups: matrices that take the same method.
        description: one sentence for people.
        pins: methods of single matrices by name, whatever the rules say.
        selection: what it is narrowed to, see ``narrowed``.
        held: matrices of which no loss increase is known, each with the one method that it takes;
            see ``holding``.
        target: the runtime that the plans are for, see ``opened_in``.
        ties: matrices that it wants to be stored alike.
    """

    name: str
    families: tuple[Family, ...]
    keep: bool = True
    rules: tuple[Rule, ...] = ()
    groups: tuple[Group, ...] = ()
    description: str = ""
    pins: tuple[tuple[str, Method], ...] = ()
    selection: Selection = field(default=EVERYTHING, repr=False)
    held: tuple[tuple[str, Method], ...] = field(default=(), repr=False)
    target: Target = field(default=NATIVE, repr=False)
    ties: tuple[tuple[LayerSpec, ...], ...] = field(default=(), repr=False)

    def pinned(self, methods: Mapping[str, Method]) -> Space:
        """The same space in which some matrices, by name, take the one method given for each."""
        given = f"{self.name}, with {len(methods)} matrices as they are given"
        return replace(self, name=given if methods else self.name, pins=tuple(methods.items()))

    @cached_property
    def _pin_rules(self) -> dict[str, Rule]:
        return {name: Rule(Match(names=(name,)), pin=method) for name, method in self.pins}

    def holding(self, methods: Mapping[str, Method]) -> Space:
        """The space with some matrices held at a method, whatever its rules say.

        A rule that pins a matrix which it selects by name stays: somebody has asked for that one.
        """
        return replace(self, held=tuple(methods.items()))

    @cached_property
    def _held(self) -> dict[str, Method]:
        return dict(self.held)

    def opened_in(self, target: Target, specs: Sequence[LayerSpec]) -> Space:
        """The part of the space that a target opens for the matrices of a model.

        Where nothing of it is left for a matrix, or for those that the target ties, they stay
        dense.
        """
        by_name = {spec.name: spec for spec in specs}
        ties = tuple(tuple(by_name[name] for name in names) for names in target.grouped(specs))
        return replace(self, target=target, ties=ties)

    def refused(self, spec: LayerSpec) -> str | None:
        """Why the target keeps a matrix dense that the space would compress, if it does."""
        if self.options(spec) != (Keep(),):
            return None
        offered = [method for method in self._options(spec) if method != Keep()]
        reasons = [self.target.refuses(method, spec) for method in offered]
        if None not in reasons:
            return reasons[0] if reasons else None
        others = " and ".join(each.name for each in self._tied_to(spec) if each != spec)
        return f"the target {self.target.name} ties it to {others}, and they share no option"

    def holds(self, spec: LayerSpec) -> bool:
        """Whether a matrix is held at one method, by no rule of the space."""
        return self._held_at(spec) is not None

    def _held_at(self, spec: LayerSpec) -> Method | None:
        rule = self.rule_for(spec) if spec.name in self._held else None
        named = rule is not None and rule.pin is not None and bool(rule.match.names)
        return None if named else self._held.get(spec.name)

    def narrowed(self, selection: Selection) -> Space:
        """The part of the space that a selection leaves.

        Raises:
            ConfigurationError: it names a method that the space does not offer, or leaves out one
                that a rule pins.
        """
        wanted, offered = selection.methods, [family.name for family in self.families]
        missing = [name for name in wanted if name not in (*offered, Keep.name)]
        if missing:
            raise ConfigurationError(
                f"the search space {self.name!r} does not offer a method of --methods",
                got=missing[0],
                wanted=f"some of {', '.join(offered)}",
                hint="Name another space with --space; default offers every method.",
            )
        for rule in self.rules:
            if wanted and rule.pin is not None and rule.pin.name not in wanted:
                line = f", line {rule.line}" if rule.line else ""
                raise ConfigurationError(
                    f"search space {self.name}{line}: --methods leaves out what a rule pins",
                    got=rule.pin.name,
                    wanted=", ".join(wanted),
                )
        families = tuple(f for f in self.families if not wanted or f.name in wanted)
        return replace(self, families=families, selection=selection)

    def leaves(self, spec: LayerSpec) -> bool:
        """Whether a matrix can only stay as it is."""
        return self.selection.leaves(spec) or self.options(spec) == (Keep(),)

    def rule_for(self, spec: LayerSpec) -> Rule | None:
        """The first rule that matches a matrix, its own pin before all."""
        if spec.name in self._pin_rules:
            return self._pin_rules[spec.name]
        return next((rule for rule in self.rules if rule.match.matches(spec)), None)

    def options(self, spec: LayerSpec) -> tuple[Method, ...]:
        """Every method that may store a matrix, each once, from most to fewest bytes.

        Settings that do not fit the matrix (a group size that does not divide its rows) and those
        that would store no fewer bytes than keeping it are left out, and so is what the target does
        not open.

        Raises:
            ConfigurationError: nothing is left, or the target ties a matrix to one that is pinned
                to what it cannot take.
            MethodError: a pinned method does not fit, or the target does not open it.
        """
        opened = self._opened(spec)
        for other in self._tied_to(spec):
            shared = self._opened(other)
            opened = tuple(method for method in opened if method in shared)
        return opened or self._dense(spec)

    def _dense(self, spec: LayerSpec) -> tuple[Method, ...]:
        """What is left where the target opens nothing else.

        Raises:
            ConfigurationError: a matrix that the target ties to this one is pinned.
        """
        for other in self._tied_to(spec):
            rule = self.rule_for(other)
            if rule is not None and rule.pin not in (None, Keep()):
                raise ConfigurationError(
                    f"search space {self.name}: layer {other.name} is pinned to {rule.pin}",
                    wanted=f"a method that all matrices offer which the target {self.target.name} "
                    f"ties to it: {', '.join(each.name for each in self._tied_to(spec))}",
                )
        return (Keep(),)

    def _tied_to(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        """The matrices that the target ties to one, itself among them; none where it is free."""
        return next((members for members in self.ties if spec in members), ())

    def _opened(self, spec: LayerSpec) -> tuple[Method, ...]:
        """What the space offers a matrix and the target opens for it."""
        return tuple(each for each in self._options(spec) if self.target.opens(each, spec))

    def _options(self, spec: LayerSpec) -> tuple[Method, ...]:
        """What the space offers a matrix, whatever the target opens."""
        if self.selection.leaves(spec):
            return (Keep(),)
        held = self._held_at(spec)
        if held is not None:
            return (held,)
        rule = self.rule_for(spec)
        if rule is not None and rule.pin is not None:
            pinned = _fitting_pin(rule.pin, spec)
            self.target.check_method(pinned, spec)
            return (pinned,)
        shape = spec.alike
        offers = self._offers.get((shape, id(rule)))
        if offers is not None:
            return offers
        fitting = [
            method
            for family in self.families
            for method in family.candidates(shape)
            if method.suits(shape)
        ]
        allowed = [method for method in fitting if rule is None or rule.allows(method, shape)]
        dense_bytes = Keep().cost(shape)
        options = {method for method in allowed if method.cost(shape) < dense_bytes}
        if self._may_keep(rule):
            options.add(Keep())
        if not options or (not fitting and self._offered(rule)):
            raise self._nothing_left(spec, rule, bool(fitting))
        offers = tuple(sorted(options, key=lambda method: (-method.cost(shape), str(method))))
        self._offers[shape, id(rule)] = offers
        return offers

    @cached_property
    def _offers(self) -> dict[tuple[LayerSpec, int], tuple[Method, ...]]:
        """What is offered to matrices that are alike under a rule, as far as it was asked for."""
        return {}

    def shared_options(self, specs: Sequence[LayerSpec]) -> tuple[Method, ...]:
        """Every method that all the given matrices may take, in the order of the first's options.

        Raises:
            ConfigurationError: they share none.
        """
        menus = [self.options(spec) for spec in specs]
        shared = set(menus[0]).intersection(*menus[1:])
        if not shared:
            names = ", ".join(spec.name for spec in specs)
            raise ConfigurationError(
                f"search space {self.name}: the group {names} shares no option",
                hint="Loosen its rules, or drop the group.",
            )
        return tuple(method for method in menus[0] if method in shared)

    def grouped(self, specs: Sequence[LayerSpec]) -> tuple[tuple[LayerSpec, ...], ...]:
        """The sets of matrices that take the same method; pinned and left ones are in no group.

        Groups that the target ties together are one set.

        Raises:
            ConfigurationError: a matrix is in two groups.
        """
        free = [
            spec
            for spec in specs
            if not (self.selection.leaves(spec) or self.holds(spec))
            and ((rule := self.rule_for(spec)) is None or rule.pin is None)
        ]
        sets = tuple(members for group in self.groups for members in group.members(free))
        seen: set[str] = set()
        for spec in (spec for members in sets for spec in members):
            if spec.name in seen:
                raise ConfigurationError(
                    f"search space {self.name}: layer {spec.name} is in two groups",
                    wanted="one group at most",
                )
            seen.add(spec.name)
        return _joined((*sets, *self.ties))

    def notices(self, specs: Sequence[LayerSpec]) -> tuple[str, ...]:
        """What was corrected to suit the matrices, for the report; alike ones in one line."""
        corrected: dict[str, list[LayerSpec]] = {}
        for spec in (spec for spec in specs if not self.selection.leaves(spec)):
            for notice in dict.fromkeys(self._notices(spec)):
                corrected.setdefault(notice, []).append(spec)
        return tuple(
            f"{first}{f' and {len(others)} more' if others else ''}: {notice}"
            for notice, (first, *others) in corrected.items()
        )

    def _notices(self, spec: LayerSpec) -> Iterator[str]:
        rule = self.rule_for(spec)
        if self.holds(spec):
            return
        if rule is None or rule.pin is None:
            for family in self._offered(rule):
                yield from family.notices(spec)
        elif (used := rule.pin.fitting(spec)) != rule.pin:
            yield repair_notice(rule.pin, used)

    def unmatched_rules(self, specs: Sequence[LayerSpec]) -> tuple[UnmatchedRule, ...]:
        """The rules, optional ones aside, that match no matrix of a model."""
        return tuple(
            UnmatchedRule(rule, _nearest(rule.match, specs))
            for rule in self.rules
            if not rule.optional and not any(rule.match.matches(spec) for spec in specs)
        )

    def check(self, specs: Sequence[LayerSpec]) -> None:
        """Make sure that the space suits a model.

        Raises:
            ConfigurationError: a rule or what it is narrowed to matches nothing, a matrix has no
                option, or a group shares none.
        """
        self.selection.check(specs)
        for unmatched in self.unmatched_rules(specs):
            line = f", line {unmatched.rule.line}" if unmatched.rule.line else ""
            raise ConfigurationError(
                f"search space {self.name}{line}: a rule matches no layer",
                got=str(unmatched.rule.match),
                wanted=f"for example {', '.join(unmatched.nearest)}" if unmatched.nearest else "",
                hint="Correct it, or say `optional: true` if some models lack such layers.",
            )
        for spec in specs:
            self.options(spec)
        for members in self.grouped(specs):
            self.shared_options(members)

    def _may_keep(self, rule: Rule | None) -> bool:
        return self.keep if rule is None or rule.methods is None else Keep.name in rule.methods

    def _offered(self, rule: Rule | None) -> tuple[Family, ...]:
        """The families that a rule leaves."""
        return tuple(
            f
            for f in self.families
            if rule is None or rule.methods is None or f.name in rule.methods
        )

    def _nothing_left(
        self, spec: LayerSpec, rule: Rule | None, any_fits: bool
    ) -> ConfigurationError:
        families = ", ".join(family.name for family in self._offered(rule))
        if not families:
            reason = "none of the methods that are left is allowed by its rule"
        elif any_fits:
            reason = f"{families} fit, but none is allowed by its rule and smaller than keeping it"
        else:
            reason = f"no setting of {families} fits its shape"
        return ConfigurationError(
            f"search space {self.name}, layer {spec}",
            got=reason,
            wanted="at least one option",
            hint="Add settings that fit (the group size `row` always does), "
            "or a rule with `keep: true` for it.",
        )


def _joined(sets: Iterable[tuple[LayerSpec, ...]]) -> tuple[tuple[LayerSpec, ...], ...]:
    """The sets with those that share a matrix made one."""
    joined: list[tuple[LayerSpec, ...]] = []
    for members in sets:
        meeting = [other for other in joined if not set(other).isdisjoint(members)]
        joined = [other for other in joined if other not in meeting]
        joined.append(tuple(dict.fromkeys(spec for each in (*meeting, members) for spec in each)))
    return tuple(joined)


def _fitting_pin(pinned: Method, spec: LayerSpec) -> Method:
    """The pinned method with modes and ranks that the matrix allows.

    Raises:
        MethodError: another setting does not fit.
    """
    method = pinned.fitting(spec)
    if method.is_open:
        raise MethodError(
            f"layer {spec}, pinned to {pinned}: its bytes are unknown before it is fitted",
            wanted="a rank in place of the tolerance, which a recipe may have",
        )
    try:
        method.check(spec)
    except MethodError as error:
        raise error.within(f"layer {spec}, pinned to {pinned}") from error
    return method


def _nearest(match: Match, specs: Sequence[LayerSpec]) -> tuple[str, ...]:
    """Names, roles, parts or depths that a model has, nearest to those that a rule asked for."""
    if match.names:
        names = [name for spec in specs for name in (spec.name, *spec.tied)]
        near = difflib.get_close_matches(match.names[0], names, n=3, cutoff=0.4)
        return tuple(near or names[:3])
    if match.roles:
        return tuple(dict.fromkeys(spec.role.value for spec in specs))
    if match.parts:
        return tuple(dict.fromkeys(spec.role.part for spec in specs))
    return tuple(dict.fromkeys(str(spec.depth) for spec in specs))
