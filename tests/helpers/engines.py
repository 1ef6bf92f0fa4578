"""What the tests of a shop's own search engines share."""

from dataclasses import replace

from qagent_mlx.utils import trust


def named(shop, **engine):
    """The shop with an engine in its settings, which its user has named; saved, and read again."""
    settings = handed(shop, **engine)
    variables = [
        engine[name] for name in ("password_variable", "api_key_variable") if name in engine
    ]
    if "url" in engine:
        trust.trust_address(engine["url"].rstrip("/"), variables)
    if "dsn" in engine:
        from qagent_mlx.inventory.postgres import conninfo_to_dict, make_conninfo

        trust.trust_address(make_conninfo(**conninfo_to_dict(engine["dsn"])))
    if "dsn_variable" in engine:
        trust.trust_address(engine["dsn_variable"])
    return settings


def handed(shop, **engine):
    """The shop with an engine in its settings as somebody else hands it over."""
    search = replace(shop.config.search, engine=engine)
    shop.config = replace(shop.config, search=search)
    shop.save_config()
    return shop


def ids(hits):
    return [hit.product_id for hit in hits]
