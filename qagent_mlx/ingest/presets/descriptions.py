"""What presets are called and which files they read; light, for the command line's help."""

from __future__ import annotations

from typing import NamedTuple


class Description(NamedTuple):
    """Whose format a preset reads, and the files of it with the fields that tell it."""

    title: str
    files: str


DESCRIPTIONS = {
    "ubi": Description(
        "OpenSearch User Behavior Insights 1.0 to 1.3",
        "ubi_queries (query_id, user_query) and ubi_events (action_name, event_attributes) as "
        "JSON lines, _bulk or elasticdump",
    ),
    "ga4": Description(
        "Google Analytics 4, BigQuery export",
        "events_YYYYMMDD (event_name, event_timestamp, event_params, items) as JSON lines or "
        "Parquet",
    ),
    "segment": Description(
        "Segment and RudderStack",
        "track calls (type, event, properties, messageId) as JSON lines, or warehouse tables "
        "(event, event_text, anonymous_id)",
    ),
    "algolia": Description(
        "Algolia Insights, and a log of queries and clicks",
        "events (eventType, eventName, userToken, objectIDs) as JSON lines or request bodies; "
        "queries.csv (query_id, user_token, query), clicks.csv (query_id, object_id)",
    ),
    "shopify": Description(
        "Shopify, admin exports of products and orders",
        "products_export.csv (Handle, Title, Variant SKU), orders_export.csv (Name, Financial "
        "Status, Lineitem sku)",
    ),
    "woocommerce": Description(
        "WooCommerce, products and orders",
        "wc-product-export.csv (ID, Type, SKU, Name, Regular price); orders from the REST "
        "interface (JSON) or of export plugins (CSV, one line an item)",
    ),
    "google-merchant": Description(
        "Google Merchant Center feed",
        "a feed (id, title, link, image_link, availability, price) as TSV, CSV, RSS or Atom",
    ),
    "matomo": Description(
        "Matomo, Live.getLastVisitsDetails", "visits (idVisit, visitorId, actionDetails) as JSON"
    ),
    "elasticdump": Description(
        "elasticdump, _bulk and saved search answers",
        "documents (_source, _id) with the keys of products or events",
    ),
    "bestbuy": Description(
        "Best Buy, small set",
        "products.csv (sku, name), events.csv (user_id, query, sku, query_time, click_time)",
    ),
    "amazon": Description(
        "Amazon Reviews 2023, with ESCI's queries",
        "*meta*.jsonl, one file of reviews (.jsonl, .csv); for typed queries "
        "*examples*.parquet or .csv",
    ),
    "amazon-office": Description(
        "Amazon Office Products",
        "products.csv (item_id, title, brand), purchases.csv (user_id, position, item_id)",
    ),
    "instacart": Description(
        "Instacart 2017",
        "products, aisles, departments, orders, order_products__prior (.csv); or products.csv "
        "with aisle and department and order_items.csv",
    ),
    "retailrocket": Description(
        "RetailRocket",
        "events.csv (timestamp, visitorid, event, itemid, transactionid), item_properties_part*, "
        "category_tree.csv",
    ),
    "otto": Description("OTTO sessions", "*.jsonl (session, events of aid, ts, type)"),
    "hm": Description(
        "H&M", "articles.csv (article_id, prod_name), transactions_train.csv (t_dat, customer_id)"
    ),
    "diginetica": Description(
        "Diginetica, CIKM Cup 2016",
        "train-queries.csv (searchstring.tokens), train-clicks, train-item-views, "
        "train-purchases, products, product-categories",
    ),
    "mercadolibre": Description(
        "MercadoLibre Data Challenge 2020",
        "train_dataset.jl.gz, test_dataset.jl.gz (user_history), item_data.jl.gz",
    ),
    "kuaisearch": Description(
        "KuaiSearch",
        "items.jsonl, recall.jsonl (impressed_item_ids) or rank.jsonl (target_item_id)",
    ),
    "amazonqac": Description(
        "AmazonQAC, searches only", "Parquet (final_search_term, session_id, search_time)"
    ),
    "trivago": Description(
        "Trivago RecSys Challenge 2019",
        "train.csv, test.csv (session_id, step, action_type, reference), item_metadata.csv",
    ),
    "bestbuy-big": Description(
        "Best Buy, big set",
        "train.csv (user, sku, category, query, click_time, query_time), "
        "product_data/products/*.xml or product_data.tar.gz",
    ),
    "generic": Description(
        "any shop's own", "products.* and events.* with the columns of qagent ingest"
    ),
}
