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
