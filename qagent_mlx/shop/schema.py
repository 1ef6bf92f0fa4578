"""The tables of a shop's database."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
INSERT INTO meta VALUES ('shop_version', '{version}'), ('catalog_version', '0');
CREATE TYPE event_type AS ENUM ('search', 'view', 'click', 'cart', 'purchase');
CREATE TABLE products (
    product_id VARCHAR PRIMARY KEY,
    title      VARCHAR NOT NULL,
    brand      VARCHAR,
    category   VARCHAR,
    price      DOUBLE,
    in_stock   BOOLEAN NOT NULL,
    attributes VARCHAR,          -- a JSON object, NULL when there are none
    changed    BIGINT NOT NULL   -- the catalog version of the last change
);
CREATE TABLE product_history (   -- price and stock from a moment on; see Catalog.state_at
    product_id VARCHAR NOT NULL,
    ts         TIMESTAMP NOT NULL,
    price      DOUBLE,
    in_stock   BOOLEAN NOT NULL
);
CREATE SEQUENCE event_ids;
CREATE TABLE events (
    event_id   BIGINT NOT NULL,
    user_id    VARCHAR NOT NULL,
    ts         TIMESTAMP NOT NULL, -- UTC
    type       event_type NOT NULL,
    query      VARCHAR,
    query_key  VARCHAR,            -- text.query_key(query)
    product_id VARCHAR,
    session_id BIGINT,             -- event_id of the session's first event
    search_id  BIGINT              -- event_id of the search that this event belongs to
);
CREATE TABLE rejects (
    file VARCHAR, row BIGINT, kind VARCHAR, reason VARCHAR, raw VARCHAR,
    rejected_at TIMESTAMP DEFAULT (current_timestamp AT TIME ZONE 'UTC')
);
"""

# Tables and columns that shops of 0.1.0 lack; they get them when they are first opened for writing.
ADDITIONS = """
CREATE TABLE IF NOT EXISTS product_aliases (  -- other ids of a product, such as variants' SKUs
    alias      VARCHAR PRIMARY KEY,
    product_id VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS impressions (      -- products that a user was shown
    user_id    VARCHAR NOT NULL,
    ts         TIMESTAMP NOT NULL, -- UTC
    query      VARCHAR,
    query_key  VARCHAR,
    product_id VARCHAR NOT NULL,
    position   INTEGER,            -- from 1 on
    query_id   VARCHAR,            -- the search engine's own
    ingest_id  BIGINT              -- see ingests
);
CREATE TABLE IF NOT EXISTS ingests (          -- loads of files, for `qagent ingest history`
    ingest_id   BIGINT PRIMARY KEY,
    file        VARCHAR NOT NULL,
    kind        VARCHAR NOT NULL,
    started     TIMESTAMP NOT NULL,
    accepted    BIGINT NOT NULL,
    rejected    BIGINT NOT NULL,
    duplicates  BIGINT NOT NULL,
    options     VARCHAR NOT NULL,  -- a JSON object of those that were given
    size        BIGINT,            -- of the file in bytes, NULL for what is no file
    first_event BIGINT,            -- event_ids of the load's events, both included
    last_event  BIGINT,
    undone      TIMESTAMP
);
CREATE TABLE IF NOT EXISTS replaced_products ( -- products as they were before a load
    ingest_id  BIGINT NOT NULL,
    product_id VARCHAR NOT NULL,
    before     STRUCT(title VARCHAR, brand VARCHAR, category VARCHAR, price DOUBLE,
                      in_stock BOOLEAN, attributes VARCHAR, changed BIGINT), -- NULL if new
    history    STRUCT(ts TIMESTAMP, price DOUBLE, in_stock BOOLEAN)[],
    aliases    VARCHAR[],
    changed    BIGINT NOT NULL     -- the catalog version that the load gave it
);
ALTER TABLE rejects ADD COLUMN IF NOT EXISTS ingest_id BIGINT;
CREATE TABLE IF NOT EXISTS recommendations (  -- queries that a user was shown
    recommendation_id VARCHAR NOT NULL, -- of the answer; a query_id of UBI
    user_id    VARCHAR NOT NULL,
    ts         TIMESTAMP NOT NULL, -- UTC
    position   INTEGER NOT NULL,   -- from 1 on
    query      VARCHAR NOT NULL,   -- an object_id of UBI
    query_key  VARCHAR NOT NULL,
    propensity DOUBLE NOT NULL,    -- probability that the query was placed there
    source     VARCHAR NOT NULL,   -- agent, top-line, trending, interleaved
    policy     VARCHAR NOT NULL,
    version    BIGINT,             -- of the policy
    experiment VARCHAR,
    arm        VARCHAR,            -- of the user, or of the query where two share an answer
    ingest_id  BIGINT              -- see ingests; NULL for what a server has shown
);
CREATE TABLE IF NOT EXISTS rules (     -- of the merchant, see live.rules
    rule_id    VARCHAR NOT NULL,
    kind       VARCHAR NOT NULL,
    text       VARCHAR,            -- a query, word or pattern
    product_id VARCHAR,
    category   VARCHAR,
    position   INTEGER,            -- of a pin, from 1 on
    starts     TIMESTAMP,          -- UTC; NULL for always, as ends
    ends       TIMESTAMP,
    author     VARCHAR NOT NULL,
    created    TIMESTAMP NOT NULL,
    removed    TIMESTAMP,
    removed_by VARCHAR
);
CREATE TABLE IF NOT EXISTS wishes (    -- what users want no more, see live.wishes
    wish_id   VARCHAR NOT NULL,
    user_id   VARCHAR NOT NULL,
    query     VARCHAR,
    category  VARCHAR,
    created   TIMESTAMP NOT NULL,
    withdrawn TIMESTAMP
);
CREATE TABLE IF NOT EXISTS experiments (  -- see live.experiments
    name      VARCHAR NOT NULL,
    control   VARCHAR NOT NULL,
    treatment VARCHAR NOT NULL,
    share     DOUBLE NOT NULL,     -- of the users, who get the treatment
    salt      VARCHAR NOT NULL,
    started   TIMESTAMP NOT NULL,
    stopped   TIMESTAMP,
    author    VARCHAR NOT NULL
);
ALTER TABLE experiments ADD COLUMN IF NOT EXISTS kind VARCHAR; -- NULL is split
ALTER TABLE recommendations ADD COLUMN IF NOT EXISTS latency_ms DOUBLE;
ALTER TABLE events ADD COLUMN IF NOT EXISTS recommendation_id VARCHAR; -- that it came of
ALTER TABLE events ADD COLUMN IF NOT EXISTS position INTEGER;          -- in that one, from 1 on
"""

# A table and a column of each step of `ADDITIONS`: a shop that lacks one is given them all.
ADDED = {
    "rejects": "ingest_id",
    "replaced_products": "changed",
    "recommendations": "latency_ms",
    "experiments": "kind",
    "events": "recommendation_id",
    "rules": "removed_by",
    "wishes": "withdrawn",
}
# What an event says; its session and search are derived.
EVENT_COLUMNS = "event_id, user_id, ts, type, query, query_key, product_id"
# Tables whose rows the machines of a shop in a lake share (see `lake`); the others hold what each
# machine derives from them.
SHARED = (
    *("meta", "products", "product_history", "product_aliases", "events", "rejects"),
    *("impressions", "ingests", "replaced_products", "recommendations"),
    *("rules", "wishes", "experiments"),
)
# Keys of ``meta`` that each machine has for itself: of its stored memory and of its copy.
OF_THIS_MACHINE = (
    *("lake", "lake_made_of"),
    *("memory", "memory_epoch", "memory_hours", "memory_end"),
)
# Nobody who works on a snapshot needs these: they grow with every answer.
NOT_IN_SNAPSHOTS = ("recommendations",)
