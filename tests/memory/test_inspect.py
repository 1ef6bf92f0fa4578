import json

from qagent_mlx.memory.inspect import memory_view
from qagent_mlx.memory.profile import SECTIONS, Memory, count_words
from qagent_mlx.memory.types import Moment


def test_a_view_is_plain_json(tiny_shop):
    memory = Memory(tiny_shop.connection, tiny_shop.config.memory, count_words)
    moment = Moment("u01", tiny_shop.end_of_log())
    view = memory_view(memory, moment)
    plain = view.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == [
        "user",
        "as_of",
        "events",
        "tokens",
        "raw_tokens",
        "text",
        "sections",
        "graph",
    ]
    assert plain["as_of"] == moment.as_of.isoformat()
    assert plain["tokens"] == memory.profiles([moment])[0].tokens < plain["raw_tokens"]
    assert list(plain["sections"]) == list(SECTIONS)
    node, edge = plain["graph"]["nodes"][0], plain["graph"]["edges"][0]
    assert list(node)[:4] == ["kind", "node", "weight", "share"]
    assert edge["kind"] == f"{edge['from_kind']}-{edge['to_kind']}"
