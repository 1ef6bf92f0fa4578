"""Versions of policies: they never change, keep what they stand on, and one is promoted."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stand_ins import save_stand_in, stand_in, write_stand_in

from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.promotions import before_promoted, promoted, promotions, stamp
from qagent_mlx.policy.registry import (
    cold_started_policy,
    lasting_name,
    policy_names,
    pretrained_policy,
    resolve,
    serving_policy,
)
from qagent_mlx.policy.versions import policies, policy_version, promote, remove, rollback
from qagent_mlx.shop.policy_folders import all_versions, release, reservations, reserve
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import read_json
from qagent_mlx.utils.settings import SettingError

OLD_SHOP = Path(__file__).parents[1] / "reliability" / "shops" / "0.1.0.tar.xz"


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


def problems(shop):
    return {v.policy: v.problem for v in policies(shop) if v.problem}


# ---------------------------------------------------------------- names


def test_training_again_makes_a_version_and_the_old_one_keeps_its_place(shop):
    assert save_stand_in(shop, "base") == "base@1"
    assert save_stand_in(shop, "sft", "base") == "sft@1"
    assert save_stand_in(shop, "grpo", "sft") == "grpo@1"
    before = {p: p.read_bytes() for p in resolve(shop, "sft").iterdir()}
    assert save_stand_in(shop, "sft", "base") == "sft@2"
    assert resolve(shop, "sft") == resolve(shop, "sft@2") != resolve(shop, "sft@1")
    assert before == {p: p.read_bytes() for p in resolve(shop, "sft@1").iterdir()}
    assert policy_version(shop, "grpo").base == "sft@1" and not problems(shop)
    assert policy_names(shop) == ["base", "grpo", "sft"]
    with pytest.raises(QAgentError, match=r"no policy sft@3; its versions are sft@1, sft@2"):
        resolve(shop, "sft@3")


def test_what_nobody_names_is_the_promoted_one_else_grpo_else_the_newest(shop):
    assert serving_policy(shop) == "sample"
    assert pretrained_policy(shop) == cold_started_policy(shop) == "sample"
    save_stand_in(shop, "base", created="2026-01-01T00:00:00+00:00")
    assert pretrained_policy(shop) == cold_started_policy(shop) == "base@1"
    save_stand_in(shop, "sft", "base", created="2026-01-02T00:00:00+00:00")
    assert serving_policy(shop) == cold_started_policy(shop) == "sft@1"
    save_stand_in(shop, "grpo", "sft", "grpo", created="2026-01-03T00:00:00+00:00")
    save_stand_in(shop, "other", "base", "sft", created="2026-01-04T00:00:00+00:00")
    assert serving_policy(shop) == "grpo@1"
    assert (cold_started_policy(shop), pretrained_policy(shop)) == ("other@1", "base@1")
    promote(shop, "sft")
    assert serving_policy(shop) == cold_started_policy(shop) == "sft@1"
    assert pretrained_policy(shop) == "base@1", "SFT never starts from another adapter by itself"
    assert resolve(shop, "promoted") == resolve(shop, "sft@1")
    assert lasting_name(shop, "sample") == "sample"


def test_a_number_is_given_once(shop):
    for number in (1, 2, 3):
        assert save_stand_in(shop, "base") == f"base@{number}"
    remove(shop, ["base@3"])
    assert save_stand_in(shop, "base") == "base@4"
    first = reserve(shop.path / "policies", "base")
    second = reserve(shop.path / "policies", "base")
    assert (first.number, second.number) == (5, 6)
    assert [r.number for r in reservations(shop.path / "policies")] == [5, 6]
    assert [v.version for v in policies(shop)] == [1, 2, 4], "what is not saved is not shown"
    release(shop.path / "policies", second)
    assert [r.number for r in reservations(shop.path / "policies")] == [5]


# ---------------------------------------------------------------- promotion


def test_promotions_are_remembered_and_taken_back(shop):
    assert stamp(shop) is None
    for _ in range(3):
        save_stand_in(shop, "base")
    with pytest.raises(QAgentError, match="no policy is promoted"):
        rollback(shop)
    for number in (1, 2, 3):
        promote(shop, f"base@{number}")
    before = stamp(shop)
    assert promote(shop, "base") == promotions(shop)[-1] and stamp(shop) == before  # it is already
    change = rollback(shop)
    assert (change.policy, change.previous, change.action) == ("base@2", "base@3", "rollback")
    assert "@" in change.by and change.at.startswith("20")
    assert stamp(shop) != before
    assert rollback(shop).policy == "base@1" == promoted(shop)
    with pytest.raises(QAgentError, match="nothing was promoted before base@1"):
        rollback(shop)
    promote(shop, "sample")
    assert before_promoted(shop) == ["base@1"]
    assert [p.policy for p in promotions(shop)] == [
        *("base@1", "base@2", "base@3", "base@2", "base@1", "sample")
    ]


def test_what_cannot_be_opened_is_marked_and_not_promoted(shop):
    save_stand_in(shop, "base")
    save_stand_in(shop, "sft", "base")
    save_stand_in(shop, "other")
    shutil.rmtree(resolve(shop, "base"))
    assert "its base model base@1" in problems(shop)["sft@1"]
    with pytest.raises(QAgentError, match="needs its base model base@1, which is gone"):
        promote(shop, "sft")
    (resolve(shop, "other") / "model.safetensors").write_bytes(b"changed")
    assert "not what its policy.json was written for" in problems(shop)["other@1"]
    write_stand_in(shop.path.parent / "elsewhere", stand_in(shop, "elsewhere"))
    with pytest.raises(QAgentError, match="is no policy of"):
        promote(shop, str(shop.path.parent / "elsewhere"))


def test_a_damaged_history_is_told(shop):
    save_stand_in(shop, "base")
    promote(shop, "base")
    (shop.path / "policies" / ".promotions.json").write_text('{"format": 1, "promotions": [3]}')
    with pytest.raises(QAgentError, match=r"promotions.json is damaged .*; delete it"):
        serving_policy(shop)


# ---------------------------------------------------------------- removal


def test_what_others_stand_on_is_not_removed(shop):
    save_stand_in(shop, "base")
    save_stand_in(shop, "sft", "base")
    save_stand_in(shop, "grpo", "sft")
    save_stand_in(shop, "sft", "base")
    with pytest.raises(QAgentError, match="several versions; name those to remove: sft@1, sft@2"):
        remove(shop, ["sft"])
    with pytest.raises(
        QAgentError, match="cascade must be set to remove sft@1: grpo@1 stands on it"
    ):
        remove(shop, ["sft@1"])
    assert remove(shop, ["sft@2"]).removed == ["sft@2"]
    promote(shop, "base")
    promote(shop, "grpo")
    with pytest.raises(QAgentError, match="force must be set to remove grpo@1, which is promoted"):
        remove(shop, ["sft@1"], cascade=True)
    removal = remove(shop, ["sft@1"], cascade=True, force=True)
    assert (removal.removed, removal.promoted) == (["sft@1", "grpo@1"], "base@1")
    assert [v.policy for v in policies(shop)] == ["base@1"]
    assert remove(shop, ["base"], force=True).promoted == ""
    assert serving_policy(shop) == "sample" and not policies(shop)


def test_what_an_unfinished_run_stands_on_is_not_removed(shop):
    save_stand_in(shop, "base")
    reserve(shop.path / "policies", "sft", "base@1", run="monday")
    with pytest.raises(QAgentError, match="the unfinished sft@1 of the run monday stands on it"):
        remove(shop, ["base"])
    assert remove(shop, ["sft@1"]).removed == ["sft@1"]
    assert remove(shop, ["base"]).removed == ["base@1"]


def test_a_training_whose_base_is_gone_saves_nothing(shop):
    save_stand_in(shop, "base")
    info = stand_in(shop, "sft", "base", "sft")
    with pytest.raises(QAgentError, match="base@1 was removed, and nothing can stand on it"):
        from qagent_mlx.shop.policy_folders import save_version

        reservation = reserve(shop.path / "policies", "sft", "base@1")
        remove(shop, ["base"], cascade=True)
        save_version(shop.path / "policies", reservation, lambda f: write_stand_in(f, info))
    assert not policies(shop)


# ---------------------------------------------------------------- shops of before


@pytest.fixture
def old(tmp_path):
    with tarfile.open(OLD_SHOP) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "shop"


def test_an_old_shop_is_read_as_it_is_and_migrated_when_it_is_written_to(old):
    files = {p.name: p.read_bytes() for p in (old / "policies" / "tuned").iterdir()}
    with Shop.open(old) as shop:
        assert [*all_versions(old / "policies")] == ["base@1", "tuned@1"] and not problems(shop)
        assert resolve(shop, "tuned@1") == old / "policies" / "tuned"
        assert policy_version(shop, "tuned").base == "base"
        assert policy_version(shop, "tuned").created.startswith("20")
    with Shop.open(old, read_only=False) as shop:
        assert resolve(shop, "tuned") == old / "policies" / "tuned" / "1"
        assert [p.name for p in (old / "policies" / "tuned").iterdir()] == ["1"]
        assert files == {p.name: p.read_bytes() for p in resolve(shop, "tuned").iterdir()}
        assert not problems(shop)
        save_stand_in(shop, "base")
        assert not problems(shop), "its base is the version with the same weights"


def test_training_in_an_old_shop_that_is_open_for_reading_keeps_its_policies(old):
    with Shop.open(old) as shop:
        assert save_stand_in(shop, "base") == "base@2"
        assert [v.policy for v in policies(shop)] == ["base@1", "tuned@1", "base@2"]
        assert not problems(shop)


def test_a_migration_that_was_killed_half_way_is_ended(old):
    place = old / "policies" / "tuned"
    shutil.copytree(place, place / "1")  # the first half; the second had not begun
    assert [*all_versions(old / "policies")] == ["base@1", "tuned@1"]
    Shop.open(old, read_only=False).close()
    assert [p.name for p in place.iterdir()] == ["1"]


def test_what_an_older_program_saves_is_one_more_version(old):
    with Shop.open(old, read_only=False) as shop:
        before = resolve(shop, "tuned")
        kept = {p.name: p.read_bytes() for p in before.iterdir()}
    write_stand_in(
        old / "policies" / "tuned", replace(stand_in(shop, "tuned", "base"), base="base")
    )
    with Shop.open(old) as shop:
        assert [*all_versions(old / "policies")] == ["base@1", "tuned@1", "tuned@2"]
    with Shop.open(old, read_only=False) as shop:
        assert resolve(shop, "tuned@2").parent == before.parent
        assert {p.name: p.read_bytes() for p in before.iterdir()} == kept
        assert not problems(shop)


def test_a_base_that_was_overwritten_before_there_were_versions_is_told(old):
    with Shop.open(old) as shop:
        write_stand_in(old / "policies" / "base", stand_in(shop, "base"))
    with Shop.open(old, read_only=False) as shop:
        said = "trained on another version of base@1, which was overwritten since; train it again"
        assert said in problems(shop)["tuned@1"]


def test_a_description_that_is_no_json_is_marked(shop):
    save_stand_in(shop, "base")
    (resolve(shop, "base") / "policy.json").write_text("{")
    assert "damaged" in problems(shop)["base@1"]
    assert json.dumps([v.to_dict() for v in policies(shop)])
    assert read_json(shop.path / "shop.json", "it")["version"] == 1, "older programs can read it"


# ---------------------------------------------------------------- any sequence


class Shelf(RuleBasedStateMachine):
    """Whatever is trained, promoted, rolled back and removed: no policy loses its base."""

    @initialize()
    def begin(self):
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.shop = Shop.create(self.folder / "shop")
        self.running = []
        self.seen = {}

    def teardown(self):
        self.shop.close()
        shutil.rmtree(self.folder)

    @property
    def there(self):
        return [*all_versions(self.shop.path / "policies")]

    def chosen(self, number):
        return self.there[number % len(self.there)]

    @rule(name=st.sampled_from(["base", "other"]))
    def pretrain(self, name):
        save_stand_in(self.shop, name)

    @precondition(lambda self: self.there)
    @rule(name=st.sampled_from(["sft", "grpo"]), parent=st.integers(0, 99))
    def train(self, name, parent):
        save_stand_in(self.shop, name, self.chosen(parent))

    @precondition(lambda self: self.there)
    @rule(parent=st.integers(0, 99))
    def start(self, parent):
        info = stand_in(self.shop, "slow", self.chosen(parent), "grpo")
        note = reserve(self.shop.path / "policies", "slow", info.base, run="slow")
        self.running.append((note, info))

    @precondition(lambda self: self.running)
    @rule()
    def finish(self):
        from qagent_mlx.shop.policy_folders import save_version

        note, info = self.running.pop()
        write = save_version
        try:
            write(self.shop.path / "policies", note, lambda f: write_stand_in(f, info))
        except QAgentError as error:
            assert "was removed" in str(error) and info.base not in self.there

    @precondition(lambda self: self.there)
    @rule(number=st.integers(0, 99))
    def an_older_program_trains(self, number):
        folder = self.shop.path / "policies" / self.chosen(number).split("@")[0]
        versions = len(self.there)
        write_stand_in(folder, stand_in(self.shop, folder.name))
        assert len(self.there) == versions + 1
        Shop.open(self.shop.path, read_only=False).close()  # else it would replace its own
        assert len(self.there) == versions + 1

    @precondition(lambda self: self.there)
    @rule(number=st.integers(0, 99))
    def promote(self, number):
        before, wanted = promotions(self.shop), self.chosen(number)
        is_new = promoted(self.shop) != wanted
        assert promote(self.shop, wanted).policy == promoted(self.shop) == wanted
        assert len(promotions(self.shop)) == len(before) + is_new

    @rule()
    def rollback(self):
        before = promoted(self.shop)
        try:
            assert rollback(self.shop).policy != before
        except QAgentError as error:
            assert "promoted" in str(error) and promoted(self.shop) == before

    @precondition(lambda self: self.there)
    @rule(number=st.integers(0, 99), cascade=st.booleans(), force=st.booleans())
    def remove(self, number, cascade, force):
        target = self.chosen(number)
        try:
            removed = remove(self.shop, [target], cascade=cascade, force=force).removed
            assert target in removed and not {*removed} & {*self.there}
        except QAgentError as error:
            refused = {"cascade": cascade, "force": force}
            assert isinstance(error, SettingError) and not refused[error.setting]
            assert target in self.there

    @invariant()
    def nothing_is_broken(self):
        if not hasattr(self, "shop"):
            return
        assert not problems(self.shop)
        assert promoted(self.shop) in ("", *self.there)
        resolve(self.shop, serving_policy(self.shop))
        for reference, folder in all_versions(self.shop.path / "policies").items():
            weights = next(folder.glob("*.safetensors")).read_bytes()
            assert self.seen.setdefault(reference, weights) == weights, "a version has changed"


TestShelf = Shelf.TestCase
TestShelf.settings = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)
