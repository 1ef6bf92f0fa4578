-- Empty tables of users' transitions; `kind` is TABLE, or TEMP TABLE. Their columns are the fields
-- of the classes in transitions.py.
CREATE OR REPLACE {kind} outcomes (user_id VARCHAR, event_id BIGINT, query_key VARCHAR,
    known TIMESTAMP, first_product VARCHAR, product_id VARCHAR);
CREATE OR REPLACE {kind} steps (user_id VARCHAR, source VARCHAR, query_key VARCHAR,
    known TIMESTAMP, closeness INTEGER, delay DOUBLE);
CREATE OR REPLACE {kind} cycles (user_id VARCHAR, leaf VARCHAR, known TIMESTAMP, gap DOUBLE,
    more DOUBLE);
CREATE OR REPLACE {kind} returns (user_id VARCHAR, query_key VARCHAR, known TIMESTAMP, same BOOLEAN,
    category VARCHAR, leaf VARCHAR, delay DOUBLE)
