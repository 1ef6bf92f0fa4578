-- The 40 queries that were searched most in a window before the start of each hour, with their
-- shares of all searches in that window, in a longer and in a shorter one.
WITH hours AS (SELECT unnest($hours)::TIMESTAMP AS hour),
counted AS (
    SELECT h.hour, x.query_key,
           sum(x.n) FILTER (x.hour >= h.hour - INTERVAL '{window} hours') AS recent,
           coalesce(sum(x.n) FILTER (x.hour >= h.hour - INTERVAL '{short} hours'), 0) AS short,
           sum(x.n) AS longer
    FROM hours h JOIN {hourly} x ON x.hour < h.hour AND x.hour >= h.hour - INTERVAL '{long} hours'
    GROUP BY h.hour, x.query_key),
shared AS (
    SELECT hour, query_key, recent, recent / sum(recent) OVER (PARTITION BY hour) AS share,
           longer / sum(longer) OVER (PARTITION BY hour) AS longer_share,
           short / greatest(sum(short) OVER (PARTITION BY hour), 1) AS short_share
    FROM counted)
SELECT hour, query_key, share, longer_share, short_share, row_number() OVER (
    PARTITION BY hour ORDER BY recent DESC, longer_share DESC, query_key) AS rank
FROM shared WHERE recent > 0 QUALIFY rank <= 40 ORDER BY hour, rank
