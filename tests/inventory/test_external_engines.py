"""What every external engine is asked, and what it is not."""

from qagent_mlx.inventory.external_engines import ExternalEngine


class Engine(ExternalEngine):
    """Notes what it is asked and finds the words of a query."""

    def __init__(self):
        self.asked = []

    def _search(self, queries, k, filters):
        self.asked.append(list(queries))
        return [query.split()[:k] for query in queries]


def test_an_engine_is_asked_for_each_query_once_and_for_nothing_never():
    engine = Engine()
    assert engine.search(["usb cable", "", "lamp", "usb cable", "!?"], 2) == [
        ["usb", "cable"],
        [],
        ["lamp"],
        ["usb", "cable"],
        [],
    ]
    assert engine.asked == [["usb cable", "lamp"]]
    assert engine.search(["", "!?"], 2) == [[], []]
    assert engine.search(["lamp"], 0) == [[]]
    assert engine.search([], 3) == []
    assert len(engine.asked) == 1
