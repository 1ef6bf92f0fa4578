from qagent_mlx.runs.early_stopping import BestEvaluation


def test_the_first_of_equal_evaluations_is_the_best():
    best = BestEvaluation("cons@1", patience=2)
    for step, value in enumerate((0.1, None, 0.4, 0.4), 1):
        best.update({"step": step} | ({} if value is None else {"eval_cons@1": value}))
    assert (best.step, best.value, best.exhausted) == (3, 0.4, False)
    best.update({"step": 5, "eval_cons@1": 0.3, "eval_reward": 9.0})
    assert best.exhausted and best.step == 3


def test_without_patience_nothing_is_exhausted():
    best = BestEvaluation("reward")
    for step in range(9):
        best.update({"step": step, "eval_reward": -step})
    assert not best.exhausted
