"""What the tests of a shop's own search engines share."""

from dataclasses import replace


def named(shop, **engine):
    """The shop with an engine in its settings; saved, and read again."""
    search = replace(shop.config.search, engine=engine)
    shop.config = replace(shop.config, search=search)
    shop.save_config()
    return shop


def ids(hits):
    return [hit.product_id for hit in hits]
