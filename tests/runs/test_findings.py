"""What happened in a run is said in words, and spikes are found where they are."""

import math

from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.runs.findings import findings, spikes


def steps(count, **values):
    """Metrics of some steps; a value is a number, or a function of the step."""
    return [
        {"step": i, **{k: v(i) if callable(v) else v for k, v in values.items()}}
        for i in range(1, count + 1)
    ]


def the(sentences, word):
    (found,) = [sentence for sentence in sentences if word in sentence]
    return found


def test_a_run_tells_of_its_groups_searches_entropy_and_kl():
    history = steps(
        100,
        reward=lambda i: i / 100 + 0.01 * (i % 2),
        groups=10,
        dropped_groups=lambda i: 2 if i <= 10 else 8,
        searches=lambda i: 1.8 if i <= 50 else 1.3,
        entropy=lambda i: 0.4 if i <= 50 else 0.05,
        kl=lambda i: 26.0 if i == 61 else 0.1,
        recommended=lambda i: 0.5 if i == 7 else 1.0,
    )
    said = findings(history)
    assert said[0] == "The mean reward rose from 0.060 to 0.960."
    groups = "74% of the groups had no variance and taught nothing (20% in the first tenth, 80%"
    assert groups in said[1] and "dynamic_sampling" in said[1]
    assert the(said, "Searches") == "Searches of a chain fell from 1.80 to 1.30."
    assert the(said, "Entropy") == "Entropy fell from 0.400 to 0.050 nats a token."
    assert "ended at 0.1 nats a token; its highest was 26 at step 61" in the(said, "KL from")
    assert the(said, "spiked") == "KL spiked to 26 at step 61, where 0.1 was usual."
    assert (
        the(said, "Not all")
        == "Not all chains came to a recommendation: the fewest at step 7, 50%."
    )


def test_a_reward_that_only_swings_is_not_said_to_have_risen():
    said = findings(steps(80, reward=lambda i: 0.5 + 0.3 * math.sin(7.0 * i)))
    assert "within the noise" in said[0] and "rose" not in said[0] and "fell" not in said[0]


def test_steps_that_changed_nothing_are_counted():
    said = findings(steps(20, reward=0.2, groups=4, dropped_groups=lambda i: 4 if i > 17 else 0))
    assert said[0] == "The mean reward: 0.200 all along."
    assert "3 steps changed nothing." in said


def test_the_best_evaluation_is_named_by_its_direction():
    history = steps(3, loss=lambda i: 1 / i, eval_reward=lambda i: (0.1, 0.4, 0.3)[i - 1])
    history = [m | {"eval_loss": (0.2, 0.5, 0.6)[m["step"] - 1]} for m in history]
    said = findings(history)
    assert said[0].startswith("The loss")
    assert "reward was best at step 2 (0.400) and ended at 0.300" in the(said, "cases reward")
    assert "loss was best at step 1 (0.200)" in the(said, "cases loss")


def test_a_curve_that_starts_at_nothing_and_one_of_few_steps_have_no_spikes():
    assert spikes([(i, 0.001 * i * i) for i in range(50)]) == []
    assert spikes([(1, 0.1), (2, 9.0), (3, 0.1)]) == []
    assert findings([]) == []


def test_neighbouring_peaks_are_one_spike():
    curve = [(i, {20: 5.0, 21: 9.0, 22: 6.0}.get(i, 0.2)) for i in range(60)]
    (spike,) = spikes(curve)
    assert (spike.step, spike.value) == (21, 9.0) and spike.around < 1


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_any_numbers_are_told_of(values):
    points = list(enumerate(values, 1))
    for spike in spikes(points):
        assert math.isfinite(spike.value) and spike.value > spike.around
    history = [{"step": i, "reward": v, "kl": v, "grad_norm": v} for i, v in points]
    for sentence in findings(history):
        assert "nan" not in sentence and sentence.endswith(".")
