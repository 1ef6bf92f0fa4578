"""Systems that recommend what they are told to, and cases that they may be right for."""

from shelf import AS_OF, Shelf, a_case

from qagent_mlx.environment.environment import Example
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.types import Profile


class Fixed:
    """Recommends the same queries for every case, or what a function says."""

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    def rank(self, examples, k):
        return [Ranking(tuple(self.answer(e.case))[:k]) for e in examples]


def examples(n):
    made = []
    for i in range(n):
        case = a_case(i, query=f"query {i}", key=f"query{i}", products=(f"p{i}",), user=f"u{i}")
        made.append(Example(case, Profile(case.user_id, AS_OF, "", (), ())))
    return made


def right_for(part):
    """Right for the first ``part`` of every ten cases."""
    return lambda case: [case.query if case.case_id % 10 < part else "nothing"]


def shelf_of(n):
    return Shelf({f"query {i}": (f"p{i}",) for i in range(n)}, examples(n))


class Sure(Fixed):
    """Says how sure it is."""

    def rank(self, examples, k):
        return [Ranking(r.queries, scores=(0.5,)) for r in super().rank(examples, k)]
