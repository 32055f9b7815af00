"""A loaded model with its texts, its statistics and the cache.

Search, profile, compress and export start from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import build_menu, fit_taken
from autocompress.calibration.kept_metrics import KeptMetrics, MetricsToCome
from autocompress.calibration.menu import Menu
from autocompress.calibration.reach import find_unreached
from autocompress.calibration.screening import screened_menu
from autocompress.calibration.special_rows import at_least_average
from autocompress.calibration.statistics import stream_statistics
from autocompress.crew import Crew
from autocompress.errors import DataError, ModelError, TimeIsUp
from autocompress.evaluation.corpus import PARTS, Texts, check_disjoint, load_texts
from autocompress.evaluation.encoding import (
    begin_tokens,
    check_known,
    special_tokens,
    spelled,
    token_ids,
)
from autocompress.evaluation.evaluator import PricingTexts, ScoredText
from autocompress.evaluation.objectives import objective_for
from autocompress.evaluation.plausibility import differing_texts, too_few_tokens
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows, context_length
from autocompress.free_memory import give_back_memory
from autocompress.methods.base import Method
from autocompress.methods.target import Target
from autocompress.numerics.metric import Metric
from autocompress.paths import shown
from autocompress.requests.efforts import EFFORTS, NORMAL
from autocompress.requests.groups import ChoiceRequest, SessionRequest, SourceRequest
from autocompress.space.selection import Selection
from autocompress.space.space import Space
from autocompress.space.space_file import DEFAULT_SPACE, load_space
from autocompress.store import CACHE, Cache, content_key, tensor_key
from autocompress.surgery.compute_type import FASTEST
from autocompress.surgery.inventory import Inventory, take_inventory
from autocompress.surgery.loading import LoadedModel, is_bundled, is_exported, load_model
from autocompress.surgery.native import NATIVE
from autocompress.surgery.stored_types import dtype_name, main_type
from autocompress.surgery.workbench import Workbench

PRICING_WINDOWS, LEAST_PRICING_WINDOW = 8, 64  # of the text that options are priced on
STATISTICS_VERSION = 10  # raise it when what is collected changes
TEACHER_VERSION = 2  # raise it when what is kept of the dense model's outputs changes
LONG = 2.0  # seconds, from which on these are kept


@dataclass(frozen=True)
class OwnContent:
    """What a caller has in memory in place of a source, by part (``calibration``, ``report``).

    Attributes:
        texts: texts.
        tokens: token ids ``[n]``, where they are encoded already.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)


def check_named(
    texts: SourceRequest,
    model: str | None,
    parts: Sequence[str] = PARTS,
    own: OwnContent | None = None,
    *,
    apart: bool = True,
) -> None:
    """Make sure that texts are named for a model that is not the bundled one.

    Args:
        texts: the sources.
        model: folder or name of the model; ``None`` for the bundled one.
        parts: the texts that are needed.
        own: what a caller has in memory in place of sources.
        apart: whether a source of each text alone can be named.

    Raises:
        DataError: one is not; the bundled texts are taken only where they are asked for.
    """
    if is_bundled(model) or texts.data is not None:
        return
    held = {*own.texts, *own.tokens} if own else set()
    given = {part for part in PARTS if getattr(texts, f"{part}_data") is not None} | held
    missing = [part for part in parts if part not in given]
    if not missing:
        return
    verbs = " and ".join(f"{_PURPOSES[part]} on" for part in missing)
    alone = " and ".join(f"--{part}-data" for part in missing)
    raise DataError(
        f"no text is named to {verbs}, and {model} is not the bundled model",
        wanted="--data with a text that is like what the model is for (a file, or "
        "hub/name:config:split)" + (f", to be cut into parts; or {alone}" if apart else ""),
        hint="--data bundled takes the texts that come with autocompress, which are Python's "
        "library and its documentation.",
    )


_PURPOSES = {"calibration": "calibrate", "selection": "select", "report": "report"}


class Session:
    """A dense model, ready to be compressed.

    Args:
        loaded: the dense model.
        request: which texts to use, the seed of the labels drawn for the gradients, and what is
            told how far things are.
        cache: where statistics and built layers are kept.
        own: texts and tokens to use in place of the sources that the settings name.
        target: the runtime that the model is compressed for.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        request: SessionRequest,
        cache: Cache,
        *,
        own: OwnContent | None = None,
        target: Target = NATIVE,
    ) -> None:
        self.own, self.target = own or OwnContent(), target
        self.loaded, self.cache = loaded, cache
        self.progress, self.seed = request.progress, request.seed
        self.sources, self.tokens = request.texts(), request.tokens
        self.crew: Crew | None = None  # fits what it is there for; see ``over_layers``
        self._warned: set[str] = set()
        inventory = take_inventory(loaded.model, loaded.stored_types, target=target)
        self.workbench = Workbench(loaded.model, inventory)
        self.context = context_length(loaded.model, request.longest)
        self.objective = objective_for(loaded.model)

    @cached_property
    def texts(self) -> Texts:
        """The three texts; read once."""
        names = ("data", "calibration_data", "selection_data", "report_data")
        texts = load_texts(
            **{name: getattr(self.sources, name) for name in names},
            bundled=is_bundled(self.loaded.source),
        )
        own = dict(self.own.texts)
        if not own:
            return texts
        texts = replace(
            texts, **own, names={**texts.names, **dict.fromkeys(own, "given in memory")}
        )
        known = {part: getattr(texts, part) for part in PARTS if getattr(texts, part)}
        check_disjoint(known, texts.names)
        return texts

    @cached_property
    def calibration_ids(self) -> Tensor:
        """Tokens ``[n]`` to calibrate on."""
        return self._ids("calibration")

    @cached_property
    def selection_ids(self) -> Tensor:
        """Tokens ``[n]`` to select on."""
        return self._ids("selection")

    @cached_property
    def report_ids(self) -> Tensor:
        """Tokens ``[n]`` to report on."""
        return self._ids("report")

    def _ids(self, part: str) -> Tensor:
        limit, tokenizer = getattr(self.tokens, part), self.loaded.tokenizer
        if part in self.own.tokens:
            label, ids = f"{part}_data", self._without_begin(self.own.tokens[part])[:limit]
        else:
            check_named(self.sources, self.loaded.source, (part,), self.own)
            label = f"the {part} text {self.texts.names[part]}"
            ids = token_ids(getattr(self.texts, part), tokenizer, limit=limit, name=label)
        check_known(ids, self.loaded.model, tokenizer, label)
        return ids

    def _without_begin(self, ids: Tensor) -> Tensor:
        """Token ids without the tokens that every window starts with anyway."""
        count = len(self.begin)
        return ids[count:] if tuple(ids[:count].tolist()) == self.begin else ids

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """Tokens that every window starts with."""
        if not self.sources.bos:
            return ()
        begin = begin_tokens(self.loaded.tokenizer)
        check_known(
            torch.tensor(begin), self.loaded.model, self.loaded.tokenizer, "the start of a text"
        )
        return begin

    @property
    def begin_token(self) -> str | None:
        """The tokens that every window starts with, as a person reads them."""
        return spelled(self.begin, self.loaded.tokenizer)

    def windows(self, ids: Tensor) -> Windows:
        """Cut tokens ``[n]`` into windows."""
        return self.objective.prepare(ids, self.context, self.begin)

    @property
    def statistics_key(self) -> str:
        """Hash of all that statistics on the calibration text depend on."""
        return content_key(
            self.loaded.fingerprint,
            tensor_key(self.calibration_ids),
            self.context,
            self.begin,
            special_tokens(self.loaded.tokenizer),
            self.seed,
            self.objective.name,
            STATISTICS_VERSION,
            str(next(self.loaded.model.parameters()).dtype),
        )

    @cached_property
    def metrics(self) -> KeptMetrics:
        """Metric of every matrix; see ``calibrated``."""
        return self.calibrated()

    def calibrated(self, deadline: float = math.inf) -> KeptMetrics:
        """Metric of every matrix, read from the cache one at a time.

        What is not there is collected on the calibration text, and kept block by block, so that a
        calibration that was cut off goes on where it was.

        Args:
            deadline: of ``time.monotonic``.

        Raises:
            TimeIsUp: the deadline passes meanwhile.
        """
        specs = {spec.name: spec for spec in self.workbench.inventory.layers}
        metrics = KeptMetrics(self.cache, self.statistics_key, tuple(specs))
        missing = metrics.missing()
        if not missing:
            return metrics
        tokens, text = (
            len(self.calibration_ids),
            f"the calibration text ({self._called('calibration')})",
        )
        self._warn(too_few_tokens(tokens, specs.values(), text))

        special = special_tokens(self.loaded.tokenizer)

        def keep(done: Mapping[str, Metric]) -> None:
            _check_finite(done)
            metrics.keep(
                {name: at_least_average(each, specs[name], special) for name, each in done.items()}
            )
            if time.monotonic() >= deadline:
                raise TimeIsUp.during("calibrating")

        batches = (window[None] for window in self.windows(self.calibration_ids))
        with self.progress.task("Calibrating (tokens)", len(self.calibration_ids)) as advance:
            stream_statistics(
                self.loaded.model,
                [specs[name] for name in missing],
                batches,
                keep,
                seed=self.seed,
                advance=advance,
                note=self.progress.note,
                folder=self.cache.root,
            )
        give_back_memory()
        return metrics

    @cached_property
    def unreached(self) -> dict[str, str]:
        """The matrices that the calibration text never reaches, with the reason.

        It is known before any statistics are, from passes without them.
        """
        known = self.cache.record("reach", self.statistics_key)
        if known is None:
            with self.progress.task("Looking for what the calibration text reaches"):
                known = find_unreached(
                    self.loaded.model,
                    self.workbench.inventory.layers,
                    self.windows(self.calibration_ids),
                )
            self.cache.keep_record("reach", self.statistics_key, known)
        return dict(known)

    @cached_property
    def builder(self) -> LayerBuilder:
        """Builds layers in these metrics; the first calibrates if that has not been done."""
        return LayerBuilder(self.workbench, MetricsToCome(lambda: self.metrics), self.cache)

    def menu(
        self,
        space: Space,
        *,
        samples: int = EFFORTS[NORMAL].samples,
        fit_all: bool = False,
        timed: bool = False,
        deadline: float = math.inf,
    ) -> Menu:
        """The options of every layer: fitted, predicted by fits to similar ones, or left out.

        Args:
            space: the options.
            samples: how many matrices of each kind all options are fitted to.
            fit_all: fit every option of every layer instead.
            timed: whether latency counts; see ``screened_menu``.
            deadline: of ``time.monotonic``.

        Raises:
            TimeIsUp: the deadline passes while calibrating or fitting.
        """
        specs = self.workbench.inventory.layers
        for notice in space.notices(specs):
            self.progress.note(notice)
        self.calibrated(deadline)
        if not fit_all:
            return screened_menu(
                self.builder,
                space.options,
                specs,
                timed=timed,
                samples=samples,
                progress=self.progress,
                deadline=deadline,
                crew=self.crew,
            )
        with self.progress.task("Fitting options (matrices)", len(specs)) as advance:
            return build_menu(
                self.builder,
                space.options,
                specs,
                advance=advance,
                deadline=deadline,
                crew=self.crew,
            )

    def fit_taken(
        self, menu: Menu, taken: Mapping[str, Iterable[Method]], deadline: float = math.inf
    ) -> Menu:
        """Fit what plans take of a menu and is only predicted yet; see ``fitting.fit_taken``.

        Where the deadline passes meanwhile, the menu stays as it is; fits that were done are in the
        cache.
        """
        count = len(menu.unfitted(taken))
        with self.progress.task("Fitting what plans take (matrices)", count) as advance:
            try:
                return fit_taken(
                    self.builder, menu, taken, advance, deadline=deadline, crew=self.crew
                )
            except TimeIsUp:
                self.progress.note("The time for fitting is up: what is not fitted is predicted.")
                return menu

    def scored_text(self, name: str, tokens: int | None = None) -> ScoredText:
        """A text to score on, by its name, with the dense model's predictions on it."""
        text = self.scored_windows(name, self.windows(getattr(self, f"{name}_ids")[:tokens]))
        called = f"the {name} text ({self._called(name)})"
        self._warn(self.objective.implausible(self.loaded.model, text.teacher.score.loss, called))
        return text

    def scored_windows(self, name: str, windows: Windows) -> ScoredText:
        """Windows with the dense model's predictions; those that took long are kept."""
        key = content_key(
            tensor_key(windows.ids),
            windows.context,
            windows.begin,
            str(next(self.loaded.model.parameters()).dtype),
            self.objective.name,
            TEACHER_VERSION,
        )
        kept = self.cache.tensors("teachers", key)
        if kept is not None:
            device = self.loaded.model.device
            seconds = float(kept.pop("seconds"))
            there = {name: tensor.to(device) for name, tensor in kept.items()}
            teacher = Teacher.restored(self.objective, windows, there)
            return ScoredText(name, windows, teacher, seconds)
        started = time.monotonic()
        teacher = Teacher.of(self.loaded.model, windows)
        seconds = time.monotonic() - started
        if seconds >= LONG:
            tensors = {**teacher.tensors(), "seconds": torch.tensor(seconds)}
            self.cache.keep_tensors("teachers", key, tensors)
        return ScoredText(name, windows, teacher, seconds)

    @cached_property
    def pricing_texts(self) -> PricingTexts:
        """Two parts of the calibration text: to price options on, and to judge plans by.

        They are cut into short windows, several each, so that halves of a text can be compared.
        Where there is too little text for both they are the same.
        """
        tokens = self.tokens.pricing
        first, second = self.calibration_ids[:tokens], self.calibration_ids[tokens : 2 * tokens]
        length = min(self.context, max(LEAST_PRICING_WINDOW, tokens // PRICING_WINDOWS))

        def scored(ids: Tensor) -> ScoredText:
            windows = self.objective.prepare(ids, length, self.begin)
            return self.scored_windows("calibration", windows)

        with self.progress.task("Scoring the dense model on the texts to price on"):
            slopes = scored(first)
            enough = len(second) >= tokens // 2
            return PricingTexts(slopes, scored(second) if enough else slopes)

    def compare_texts(self, judged: str) -> None:
        """Say where the calibration text and one that plans are judged on differ strongly."""
        names = self._called("calibration"), self._called(judged)
        self._warn(differing_texts(self.calibration_ids, getattr(self, f"{judged}_ids"), names))

    def _called(self, part: str) -> str:
        return f"{part}_data" if part in self.own.tokens else self.texts.names[part]

    def _warn(self, warning: str | None) -> None:
        """Say a warning; of several that begin alike only the first."""
        if warning is not None and warning[:20] not in self._warned:
            self._warned.add(warning[:20])
            self.progress.note(warning)

    def identity(self) -> dict[str, Any]:
        """What determines the results, for the record and for telling studies apart."""
        names = {f"{name}_text": self.texts.names[name] for name in PARTS}
        hashes = {f"{name}_tokens_hash": tensor_key(getattr(self, f"{name}_ids")) for name in PARTS}
        return {
            "model": self.loaded.source,
            "fingerprint": self.loaded.fingerprint,
            "dtype": dtype_name(self.loaded.model.dtype),
            "context": self.context,
            "begin_token": self.begin_token,
            **names,
            **hashes,
            "texts": self.sources.to_dict(),
            **({} if self.target.name == NATIVE.name else {"target": self.target.name}),
        }


def open_session(
    request: SessionRequest,
    *,
    own: OwnContent | None = None,
    parts: Sequence[str] = PARTS,
    target: Target = NATIVE,
) -> Session:
    """Load a dense model and make everything ready, as lazily as can be.

    Args:
        request: the model, its texts, and where the cache is.
        own: texts and tokens in place of sources.
        parts: the texts that will be needed.
        target: the runtime that the model is compressed for.

    Raises:
        DataError: one of these texts is not named, said before the model is loaded.
        ModelError: it cannot be loaded, is compressed already, is no causal language model, or has
            no matrices.
    """
    model, progress = request.model, request.progress
    check_named(request, model, parts, own)
    with progress.task(f"Loading {shown(model or 'the bundled model')}"):
        loaded = load_model(
            model,
            device=request.device,
            dtype=request.compute_dtype or FASTEST,
            trust_remote_code=request.trust_remote_code,
            dequantize=request.dequantize,
        )
    if is_exported(loaded.model):
        raise ModelError(
            f"the model {loaded.source} is compressed already",
            wanted="a dense model",
            hint="Name the one it was made from.",
        )
    if loaded.quantized_by:
        progress.note(
            f"{loaded.source} was quantized by {loaded.quantized_by}, and is dense now: bytes "
            f"count from what it takes in {dtype_name(loaded.model.dtype)}."
        )
    stored = dtype_name(main_type(loaded.model, loaded.stored_types))
    computed = dtype_name(loaded.model.dtype)
    if request.compute_dtype is None and stored != computed:
        progress.note(
            f"Computing in {computed}, which this processor does faster than {stored}, the type of "
            "the checkpoint; bytes count what it stores. "
            f"--compute-dtype {stored} computes in that."
        )
    if loaded.ignored:
        kind, some = type(loaded.model).__name__, ", ".join(loaded.ignored[:3])
        more = ", ..." if len(loaded.ignored) > 3 else ""
        progress.note(
            f"{kind} has no use for {len(loaded.ignored)} tensors of the checkpoint "
            f"({some}{more}): they are not counted, and not exported."
        )
    cache = Cache.of_model(Path(request.runs_dir) / CACHE, loaded.fingerprint, loaded.source)
    return Session(loaded, request, cache, own=own, target=target)


def space_of(request: ChoiceRequest) -> Space:
    """Load a search space by the name of one that ships, or from a file, and narrow it."""
    selection = Selection.of(request.methods, request.layers, request.keep)
    return load_space(request.space or DEFAULT_SPACE).narrowed(selection)


def grouped_names(space: Space, inventory: Inventory) -> tuple[tuple[str, ...], ...]:
    """Names of the matrices that take the same method, set by set."""
    return tuple(tuple(spec.name for spec in tied) for tied in space.grouped(inventory.layers))


def _check_finite(metrics: Mapping[str, Metric]) -> None:
    for name, metric in metrics.items():
        for term in metric.terms:
            if not (torch.isfinite(term.rows).all() and torch.isfinite(term.columns).all()):
                raise ModelError(
                    f"layer {name}: its inputs or gradients on the calibration text "
                    "are not finite numbers",
                    hint="Check the checkpoint, or compute in a wider type with "
                    "--compute-dtype float32.",
                )
