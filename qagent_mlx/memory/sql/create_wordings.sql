-- Empty tables of brands and attributes, and of which of them queries name.
CREATE OR REPLACE {kind} modifiers (kind VARCHAR, text VARCHAR);
CREATE OR REPLACE {kind} query_kinds (
    query_key VARCHAR, query VARCHAR, kind VARCHAR, modifier VARCHAR)
