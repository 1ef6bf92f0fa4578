import json
import re
from datetime import datetime

from msgspec.structs import replace

from qagent_mlx.memory.html_page import page, write_page
from qagent_mlx.memory.inspect import MemoryView
from qagent_mlx.memory.interest_graph import InterestGraph
from qagent_mlx.policy.shop_memory import inspect_memory


def test_the_page_holds_the_view_and_asks_no_network(tiny_shop, tmp_path):
    view = inspect_memory(tiny_shop, "u01")
    write_page(view, tmp_path / "u01.html")
    text = (tmp_path / "u01.html").read_text(encoding="utf-8")
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
