-- An empty table of users' states. DuckDB's default for long texts, Zstandard, has to unpack
-- thousands of rows to read one.
DROP TABLE IF EXISTS followers;
CREATE OR REPLACE TABLE profiles (
    user_id VARCHAR PRIMARY KEY,
    made    TIMESTAMP NOT NULL, -- the user's last event
    events  BIGINT NOT NULL,
    state   VARCHAR NOT NULL USING COMPRESSION {compression} -- JSON of a `UserState`
)
