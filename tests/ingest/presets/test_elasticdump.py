"""Documents of elasticdump and of _bulk files that are of no other format."""

import re
import shlex

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.columns import parse_mapping
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.presets.loading import load_preset


@pytest.mark.parametrize("container", ["elasticdump", "bulk"])
def test_the_command_for_objects_inside_documents_names_all_fields(
    shop, write_json, products, container
):
    documents = [
        {
            "name": f"Shoe {n}",
            "brand": "Acme",
            "category": ["Shoes", "Running"],
            "price": {"currency": "EUR", "amount": 10.5 + n},
            "stock": {"qty": n},
        }
        for n in range(2)
    ]
    if container == "elasticdump":
        lines = [{"_index": "p", "_id": f"i{n}", "_source": d} for n, d in enumerate(documents)]
    else:
        lines = []
        for n, document in enumerate(documents):
            lines += [{"index": {"_index": "p"}}, {**document, "sku": f"i{n}"}]
    path = write_json("dump.json", *lines)
    with pytest.raises(QAgentError, match=r"price \(the price\) and stock \(the stock\)") as error:
        load_preset(shop, "elasticdump", path)
    _, _, kind, file, *options = shlex.split(re.findall("qagent ingest .*", str(error.value))[0])
    mapping = parse_mapping(options[1::2], kind)
    report = ingest_files(shop, kind, [file], ReadOptions(mapping=mapping))
    assert report.accepted == 2
    assert products() == {
        f"i{n}": (f"Shoe {n}", "Acme", "Shoes > Running", 10.5 + n, n > 0, {}) for n in range(2)
    }
