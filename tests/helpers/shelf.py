"""An inventory of a few queries and the products that they retrieve, and cases to go with it."""

from datetime import datetime

from qagent_mlx.types import Case

AS_OF = datetime(2026, 1, 10, 12)


def a_case(number=0, query="Red Shoe", key="redshoe", products=("p1", "p2"), user="ann"):
    return Case(number, user, AS_OF, query, key, products, 3, "test")


class Shelf:
    """Retrieves what it was told to, and remembers what it was asked."""

    def __init__(self, found, examples=()):
        self.found, self.examples, self.asked = found, list(examples), []

    def retrieve(self, query, as_of):
        return self.retrieve_all([query], as_of)[0]

    def retrieve_all(self, queries, as_of):
        self.asked += [(query, as_of) for query in queries]
        return [self.found.get(query, ()) for query in queries]

    def of_split(self, split):
        return [e for e in self.examples if e.case.split == split]
