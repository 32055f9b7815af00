"""One more format takes its own file and a line in the registry; here both are the tests' own."""

from __future__ import annotations

import random

import pytest

from autocompress.api.compressing import compress_session
from autocompress.api.exported_folder import open_folder
from autocompress.api.exporting import write_folder
from autocompress.deploy.targets import TARGETS, target_of
from autocompress.driver.goal import read_goal
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import Proposer
from autocompress.driver.study_session import open_for_target
from autocompress.errors import BudgetUnreachable, ConfigurationError, MethodError, ModelError
from autocompress.evaluation.evaluator import Evaluator
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.progress import Notes
from autocompress.requests.groups import FolderRequest, SessionRequest
from autocompress.requests.verbs import CompressRequest
from autocompress.session.left_dense import within_reach
from autocompress.session.session import grouped_names
from autocompress.space.space_file import load_space
from autocompress.stage_memory import StageMemory
from autocompress.units import Limits
from tests.conftest import VOCABULARY, make_tiny_model, make_tiny_tokenizer
from tests.deploy.toy_target import FRAME, FUSED, MODEL, RECORD, Toy

SPACE = """\
version: 1
name: toys
methods:
  keep: {keep}
  quantize: {{bits: [8, 4, 2], group_sizes: [16]}}
  svd: {{rank_fractions: [0.25]}}
"""
EMBEDDING = "model.embed_tokens"
ATTENTION = "model.layers.0.self_attn"
DENSE = "it looks rows up in dense tables"


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", Toy())  # the registry's line
    make_tiny_model("llama").save_pretrained(tmp_path / "dense")
    make_tiny_tokenizer().save_pretrained(tmp_path / "dense")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=4_000)
    lines = (" ".join(f"w{word}" for word in words[at : at + 40]) for at in range(0, 4_000, 40))
    (tmp_path / "text.txt").write_text("\n".join(lines))
    for name, keep in (("space", "true"), ("crowded", "false")):
        (tmp_path / f"{name}.yaml").write_text(SPACE.format(keep=keep))
    return tmp_path


@pytest.fixture
def session(place, notes):
    return open_for_target(request_in(place, target="toy", progress=notes))


def request_in(place, **settings):
    return SessionRequest(
        model=str(place / "dense"),
        data=str(place / "text.txt"),
        context=32,
        pricing_tokens=128,
        runs_dir=place / "runs",
        **settings,
    )


def spaces(place, session, name="space"):
    return within_reach(session, load_space(str(place / f"{name}.yaml")), "keep")


@pytest.mark.parametrize("name", ["space", "crowded"])
def test_a_menu_offers_what_the_target_opens_at_its_bytes(name, place, session, notes):
    space = spaces(place, session, name)
    kept = {Keep()} if name == "space" else set()
    for layer in session.menu(space, fit_all=True).layers:
        offered = {option.method for option in layer.options}
        codes = {Quantize(4, 16), Quantize(8, 16)}
        assert offered == ({Keep()} if layer.spec.name == EMBEDDING else codes | kept)
        for option in layer.options:
            tensors = 1 if option.method == Keep() else 3
            assert option.file_bytes == option.bytes + tensors * RECORD
    (said,) = [note for note in notes.said if "does not open otherwise" in note]
    assert EMBEDDING in said
    assert DENSE in said


def test_allocations_tie_what_the_target_ties(place, session):
    space, inventory = spaces(place, session), session.workbench.inventory
    groups = grouped_names(space, inventory)
    assert [len(group) for group in groups] == [3, 3]
    menu = session.menu(space, fit_all=True)
    proposer = Proposer(menu, inventory, Limits(None, None), groups)
    least = proposer.least_bytes()
    for size in (least, (least + inventory.dense_bytes) // 2, inventory.dense_bytes):
        plan = proposer.allocated(Knobs(), size)
        session.target.check(plan, inventory.layers)
        assert inventory.plan_bytes(plan) <= size
        for depth in (0, 1):
            fused = [s.name for s in inventory.layers if s.role in FUSED and s.depth == depth]
            assert len({plan[name] for name in fused}) == 1
    with pytest.raises(BudgetUnreachable):
        proposer.allocated(Knobs(), least - 1)


def test_baseline_plans_are_such_as_the_target_opens(session):
    inventory = session.workbench.inventory
    plans = dict(baseline_plans(inventory.layers, target=inventory.target))
    assert plans.keys() < dict(baseline_plans(inventory.layers)).keys()
    for plan in plans.values():
        session.target.check(plan, inventory.layers)
        assert plan[EMBEDDING] == Keep()
        assert plan["model.layers.0.mlp.up_proj"] != Keep()


def test_a_tie_holds_the_others_where_one_stays_dense(place, session):
    space = place / "rule.yaml"
    rules = "rules: [{match: {names: ['*.0.*.q_proj']}, methods: [svd]}]\n"
    space.write_text(SPACE.format(keep="false") + rules)
    opened = spaces(place, session, "rule")
    for name in ("q_proj", "k_proj", "v_proj"):
        spec = session.workbench.inventory[f"{ATTENTION}.{name}"]
        assert opened.options(spec) == (Keep(),)
    assert "4 and 8 bits" in opened.refused(session.workbench.inventory[f"{ATTENTION}.q_proj"])
    assert "ties it to" in opened.refused(session.workbench.inventory[f"{ATTENTION}.k_proj"])
    assert opened.refused(session.workbench.inventory[f"{ATTENTION}.o_proj"]) is None


def test_groups_of_a_space_and_ties_of_a_target_are_one_set(place, session):
    space = place / "groups.yaml"
    groups = "groups: [{roles: [value, output]}, {roles: [gate, up]}]\n"
    space.write_text(SPACE.format(keep="true") + groups)
    names = grouped_names(spaces(place, session, "groups"), session.workbench.inventory)
    assert sorted(map(len, names)) == [2, 2, 4, 4]


def test_what_a_space_pins_must_be_opened(place, session):
    space = place / "pins.yaml"
    pin = "rules: [{match: {names: ['*.0.*.up_proj']}, pin: {method: svd, rank: 8}}]\n"
    space.write_text(SPACE.format(keep="true") + pin)
    with pytest.raises(MethodError, match=r"up_proj.*svd.*target toy.*4 and 8 bits"):
        spaces(place, session, "pins").check(session.workbench.inventory.layers)


def test_a_pin_holds_for_what_the_target_ties_to_it(place, session):
    inventory = session.workbench.inventory
    space = load_space(str(place / "space.yaml"))
    pinned = space.pinned({f"{ATTENTION}.q_proj": Quantize(4, 16)})
    opened = pinned.opened_in(session.target, inventory.layers)
    assert opened.options(inventory[f"{ATTENTION}.k_proj"]) == (Quantize(4, 16),)
    other = pinned.pinned({f"{ATTENTION}.q_proj": Quantize(4, 0)})
    with pytest.raises(ConfigurationError, match=r"q_proj is pinned to .*target toy ties"):
        within_reach(session, other, "keep")


def test_a_model_is_compressed_for_the_target_and_opened_by_it(place, session, notes):
    out = place / "out"
    request = CompressRequest(budget="2x", space=str(place / "space.yaml"), out=out, inplace=True)
    report = compress_session(session, read_goal(request), request, StageMemory(notes)).report
    size = (out / MODEL).stat().st_size
    assert report.bytes == size <= report.dense_bytes / 2
    assert report.exported.report.weight_bytes == report.exported.verification.bytes == size
    stored = sum(layer.bytes for layer in report.layers)
    rest = sum(entry.bytes + RECORD for entry in session.workbench.inventory.tensors)
    assert stored < size < stored + rest + FRAME + 3 * RECORD * len(report.layers)
    assert {each.name: each.reason for each in report.skipped}[EMBEDDING] == DENSE
    assert report.exported.call_to_load == f"toy serve {out}"
    assert "toy serve FOLDER" in (out / "README.md").read_text()
    with pytest.raises(ModelError, match=r"no weights that autocompress reads.*target native"):
        open_folder(out, FolderRequest(runs_dir=place / "runs"))


def test_what_the_target_does_not_open_is_not_written(place, session):
    names = [spec.name for spec in session.workbench.inventory.layers]
    text = session.scored_text("report")
    evaluator = Evaluator(session.workbench, session.builder.build)
    for plan, message in (
        ({names[2]: Svd(8)}, rf"layer {names[2]} .*svd.*target toy.*opens codes of 4 and 8 bits"),
        ({names[1]: Quantize(4, 16)}, r"layers .* differ, which the target toy ties: got .*keep"),
    ):
        refused = Plan.of(plan)
        measured = evaluator.measure(refused, text, latency=False)
        with pytest.raises(MethodError, match=message):
            write_folder(session, refused, place / "out", measured, "baseline")
        goal = read_goal(CompressRequest(recipe=refused))
        with pytest.raises(MethodError, match=message):
            goal.choose(session)
    assert not (place / "out").exists()


def test_results_of_targets_are_told_apart(place, session):
    native = open_for_target(request_in(place))
    assert session.identity() == native.identity() | {"target": "toy"}


def test_a_target_that_there_is_not_is_named_with_the_nearest():
    assert target_of("native") is TARGETS["native"]
    with pytest.raises(ConfigurationError, match=r"wanted native.*Did you mean 'native'"):
        target_of("nativ")
