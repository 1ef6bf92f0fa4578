"""A shop's own engine that has the _search API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from engines import handed, ids, named

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.opensearch import OpenSearch
from qagent_mlx.inventory.product_search import open_shop_search, search_products
from qagent_mlx.inventory.types import Filters
from qagent_mlx.utils import trust


class Engine(BaseHTTPRequestHandler):
    """Understands the part of the query language that is sent, and scores by matching words."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((self.path, dict(self.headers), body))
        if server.answer is not None:
            return self.reply(*server.answer)
        wanted = body["query"]["bool"]["must"][0]["multi_match"]
        words = wanted["query"].lower().split()
        weights = {f.partition("^")[0]: float(f.partition("^")[2] or 1) for f in wanted["fields"]}
        hits = []
        for product in server.products:
            if all(self.meets(product, c) for c in body["query"]["bool"]["filter"]):
                score = sum(
                    weight * sum(w in (product.get(field) or "").lower() for w in words)
                    for field, weight in weights.items()
                )
                if score:
                    source = {f: product[f] for f in body["_source"]} if body["_source"] else None
                    hits.append({"_id": product["product_id"], "_score": score, "_source": source})
        hits.sort(key=lambda h: -h["_score"])
        answer = {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 1, "failed": 0},
            "hits": {"total": {"value": len(hits)}, "hits": hits[: body["size"]]},
        }
        return self.reply(200, json.dumps(answer))

    @staticmethod
    def meets(product, condition):
        ((kind, value),) = condition.items()
        ((field, test),) = value.items()
        held = product[field.removesuffix(".keyword")]
        if kind == "term":
            return held == test
        if kind == "prefix":
            return (held or "").lower().startswith(test["value"].lower())
        assert kind == "range"
        return held is not None and test.get("gte", held) <= held <= test.get("lte", held)

    def reply(self, status, text):
        content = text.encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def engine(products, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.products, server.asked, server.answer = products, [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_engine_that_a_shop_names_is_asked(own_shop, engine):
    shop = named(own_shop, kind="opensearch", url=engine.url + "/", index="goods")
    search = open_shop_search(shop)
    assert isinstance(search, OpenSearch)
    found = search.search(["acme usb cable", "!!", "lamp", "lamp"], 5)
    assert len(found[0]) == 5 and found[1] == [] and found[2] == found[3] != []
    assert ids(found[0])[0].startswith("p00")
    assert {path for path, _, _ in engine.asked} == {"/goods/_search"} and len(engine.asked) == 2
    shown = search_products(shop, "acme usb cable", 5)
    assert ids(shown) == ids(found[0]) and shown[0].title
    with pytest.raises(QAgentError, match="cannot explain"):
        search_products(shop, "lamp", explain=True)


def test_filters_are_the_engines(own_shop, engine):
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    kept = Filters(in_stock=True, min_price=10, max_price=30, category="phones")
    (hits,) = search.search(["phone case"], 40, None, kept)
    rows = search.catalog.row_of
    assert hits
    for hit in hits:
        row = rows[hit.product_id]
        assert search.catalog.in_stock[row] and 10 <= search.catalog.prices[row] <= 30
        assert search.catalog.categories[row].startswith("Phones")


def test_hundreds_of_queries_are_asked_side_by_side(own_shop, engine):
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    queries = [f"{brand} lamp {i}" for i in range(50) for brand in ("acme", "dune")]
    found = search.search(queries, 3)
    assert found == [search.search([query], 3)[0] for query in queries]


def test_products_that_the_catalog_lacks_are_left_out_and_ties_go_by_id(own_shop, engine):
    found = ("p411", "gone", "p400")
    engine.products = [{"product_id": p, "sku": p, "title": "lamp"} for p in found]
    search = open_shop_search(
        named(own_shop, kind="opensearch", url=engine.url, id="sku", fields=["title"])
    )
    assert ids(search.search(["lamp"], 10)[0]) == ["p400", "p411"]
    assert engine.asked[-1][2]["_source"] == ["sku"]


def test_secrets_come_from_the_environment(own_shop, engine, monkeypatch):
    shop = named(
        own_shop, kind="opensearch", url=engine.url, user="ann", password_variable="SHOP_PASSWORD"
    )
    with pytest.raises(QAgentError, match="SHOP_PASSWORD, which is not set"):
        open_shop_search(shop)
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    open_shop_search(shop).search(["lamp"])
    assert engine.asked[-1][1]["Authorization"] == "Basic YW5uOnNlY3JldA=="
    assert "secret" not in (shop.path / "shop.json").read_text()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((503, "busy"), r"answered 503 \(busy\)"),
        ((200, "no json"), "none of the _search API"),
        ((200, "{}"), "none of the _search API"),
        ((200, "[]"), "none of the _search API"),
        ((200, '{"timed_out": true, "hits": {"hits": []}}'), "only a part"),
        ((200, '{"_shards": {"failed": 1}, "hits": {"hits": []}}'), "only a part"),
    ],
)
def test_a_bad_answer_is_one_line_with_its_remedy(own_shop, engine, answer, says):
    engine.answer = answer
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    with pytest.raises(QAgentError, match=says) as error:
        search.search(["lamp"])
    assert "\n" not in str(error.value) and "shop.json" in str(error.value)


def test_an_engine_that_is_not_there_and_wrong_settings(own_shop, engine):
    engine.server_close()
    search = open_shop_search(named(own_shop, kind="opensearch", url="http://127.0.0.1:9"))
    with pytest.raises(QAgentError, match="does not answer.*start it"):
        search.search(["lamp"])
    for settings, says in (
        ({"kind": "nosuch"}, "known are opensearch, postgres"),
        ({"kind": "opensearch"}, "url"),
        ({"kind": "opensearch", "url": "file:///etc"}, "no http"),
        (
            {"kind": "postgres", "tabel": "x"},
            "search.engine: unknown setting 'tabel'; did you mean table",
        ),
    ):
        with pytest.raises(QAgentError, match=says):
            open_shop_search(named(own_shop, **settings))


def test_a_shop_reaches_no_address_and_reads_no_variable_that_its_user_has_not_named(
    own_shop, engine, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    asks = {"kind": "opensearch", "url": engine.url, "api_key_variable": "AWS_SECRET_ACCESS_KEY"}
    shop = handed(own_shop, **asks)
    command = f"run: qagent trust {engine.url} AWS_SECRET_ACCESS_KEY"
    with pytest.raises(QAgentError, match=command) as error:
        search_products(shop, "lamp")
    assert "secret" not in str(error.value)
    # The address alone was named, for another shop: it gets queries and no secret.
    trust.trust_address(engine.url)
    with pytest.raises(QAgentError, match=command):
        search_products(shop, "lamp")
    assert engine.asked == []
    # A variable that is not set is refused alike: a stranger learns nothing of the environment.
    with pytest.raises(QAgentError, match="have not named"):
        search_products(handed(own_shop, **{**asks, "api_key_variable": "NOT_SET"}), "lamp")
    trust.trust_address(engine.url, ["AWS_SECRET_ACCESS_KEY"])
    search_products(handed(own_shop, **asks), "lamp")
    assert engine.asked[-1][1]["Authorization"] == "ApiKey secret"


def test_a_key_goes_to_its_address_only(own_shop, engine, monkeypatch):
    monkeypatch.setenv("KEY", "secret")
    elsewhere = f"http://localhost:{engine.server_port}/stolen"
    engine.answer = (302, "")
    engine.location = elsewhere
    shop = named(own_shop, kind="opensearch", url=engine.url, api_key_variable="KEY")
    with pytest.raises(QAgentError, match="answered 302"):
        open_shop_search(shop).search(["lamp"])
    assert [path for path, _, _ in engine.asked] == ["/products/_search"]
    engine.answer = None
    for index in ("goods/_delete_by_query?a=", "../_all/_close#", "a b", "ä"):
        open_shop_search(named(own_shop, kind="opensearch", url=engine.url, index=index)).search(
            ["lamp"]
        )
        path = engine.asked[-1][0]
        assert path.count("/") == 2 and path.endswith("/_search") and "?" not in path
    for url in (
        "http://good@evil:9200",
        "http://evil:9200/?",
        "http://evil:9200/#good",
        "http://[::1",
        "http://evil:x",
        "https://",
        "http://a\nb",
    ):
        with pytest.raises(QAgentError, match="no http"):
            open_shop_search(handed(own_shop, kind="opensearch", url=url))
