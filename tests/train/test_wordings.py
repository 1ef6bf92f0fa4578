import numpy as np

from qagent_mlx.inventory.catalog import Catalog
from qagent_mlx.train.wordings import Wordings


def catalog(*products):
    titles, brands, categories, attributes = zip(*products, strict=True)
    count = len(products)
    return Catalog(
        [f"p{i}" for i in range(count)],
        list(titles),
        list(brands),
        list(categories),
        np.full(count, 9.0),
        np.ones(count, bool),
        list(attributes),
    )


def test_a_product_is_asked_for_by_kind_brand_and_detail():
    shelf = catalog(
        ("Elmora EC554 Light Espresso Beans, 500g", "Elmora", "Kitchen > Coffee Beans",
         '{"roast": "light", "size": "500g", "story": "grown on a sunny hill far away"}'),
        ("Castor Espresso Beans", "Castor", "Kitchen > Coffee Beans", None),
    )  # fmt: skip
    assert Wordings(shelf).queries(0) == (
        "coffee beans",
        "espresso bean",
        "elmora coffee beans",
        "light coffee beans",
        "500g coffee beans",
        "elmora espresso bean",
        "light espresso bean",
        "500g espresso bean",
    )


def test_without_a_category_the_kind_is_what_titles_share():
    shelf = catalog(*((f"{b} running shoes", b, None, None) for b in ("Acme", "Dune", "Castor")))
    assert Wordings(shelf).queries(1) == ("running shoe", "dune running shoe")


def test_a_product_of_which_nothing_is_known_has_no_query():
    assert Wordings(catalog(("12345", None, None, None))).queries(0) == ()
