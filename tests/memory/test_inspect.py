import json
import re
from datetime import datetime

from msgspec.structs import replace

from qagent_mlx.memory.inspect import MemoryView, memory_view, page
from qagent_mlx.memory.interest_graph import InterestGraph
from qagent_mlx.memory.profile import SECTIONS, Memory, count_words
from qagent_mlx.memory.types import Moment
from qagent_mlx.policy.shop_memory import inspect_memory


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
        "wishes",
    ]
    assert plain["as_of"] == moment.as_of.isoformat()
    assert plain["tokens"] == memory.profiles([moment])[0].tokens < plain["raw_tokens"]
    assert list(plain["sections"]) == list(SECTIONS)
    node, edge = plain["graph"]["nodes"][0], plain["graph"]["edges"][0]
    assert list(node)[:4] == ["kind", "node", "weight", "share"]
    assert edge["kind"] == f"{edge['from_kind']}-{edge['to_kind']}"


def test_the_page_holds_the_view_and_asks_no_network(tiny_shop):
    view = inspect_memory(tiny_shop, "u01")
    text = page(view)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert json.loads(data) == view.to_dict()
    assert re.findall(r"(?:src|href|url)\s*[=(]", text.replace("url(#tip)", "")) == []
    assert [u for u in re.findall(r"https?://[^\"'\s]+", text) if "www.w3.org" not in u] == []
    assert "default-src 'none'" in text


def test_text_from_data_closes_no_tag():
    view = MemoryView(
        user="</script><img onerror=alert(1)>",
        as_of=datetime(2026, 1, 1),
        events=0,
        tokens=1,
        raw_tokens=1,
        text="<!-- <script>",
        sections={},
        graph=InterestGraph([], []),
    )
    plain = replace(view, user="", text="")
    assert page(view).count("<script") == page(plain).count("<script")
    assert "onerror" in page(view)
    assert "</script><img" not in page(view)
