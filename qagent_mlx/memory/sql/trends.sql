-- The 40 queries that were searched most in a window before the start of each hour, with their
-- shares of all searches in that window, in a longer and in a shorter one. New people count for a
-- query by as many an hour as come to the shop in an average hour: a burst of them counts as one.
WITH hours AS (SELECT unnest($hours)::TIMESTAMP AS hour),
past AS (
    SELECT h.hour AS now, x.* FROM hours h JOIN {hourly} x
    ON x.hour < h.hour AND x.hour >= h.hour - INTERVAL '{long} hours'),
usual AS (SELECT now, greatest(1, sum(newcomers) / {long}) AS most FROM past GROUP BY now),
voices AS (
    SELECT now AS moment, hour, query_key, people + least(newcomers, most) AS n
    FROM past JOIN usual USING (now)),
counted AS (
    SELECT moment AS hour, query_key,
           sum(n) FILTER (hour >= moment - INTERVAL '{window} hours') AS recent,
           coalesce(sum(n) FILTER (hour >= moment - INTERVAL '{short} hours'), 0) AS short,
           sum(n) AS longer
    FROM voices GROUP BY ALL),
shared AS (
    SELECT hour, query_key, recent, recent / sum(recent) OVER (PARTITION BY hour) AS share,
           longer / sum(longer) OVER (PARTITION BY hour) AS longer_share,
           short / greatest(sum(short) OVER (PARTITION BY hour), 1) AS short_share
    FROM counted)
SELECT hour, query_key, share, longer_share, short_share, row_number() OVER (
    PARTITION BY hour ORDER BY recent DESC, longer_share DESC, query_key) AS rank
FROM shared WHERE recent > 0 QUALIFY rank <= 40 ORDER BY hour, rank
