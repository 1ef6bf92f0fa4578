-- Swing (arXiv:2010.05525): two users who both made a step from `source` to `query_key` vouch for
-- it, the more the less they have in common otherwise. What a pair says is known when the later of
-- the two made the step, and their overlap is counted as of then: point-in-time. A user is paired
-- with the 20 users who made the step last before.
WITH firsts AS (
    SELECT user_id, source, query_key, min(known) AS known FROM steps GROUP BY ALL),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY source, query_key ORDER BY known, user_id) AS n
    FROM firsts),
pairs AS (
    SELECT least(a.user_id, b.user_id) AS one, greatest(a.user_id, b.user_id) AS other,
           b.source, b.query_key, b.known
    FROM (SELECT *, unnest(range(1, 21)) AS apart FROM ranked) a
    JOIN ranked b ON b.source = a.source AND b.query_key = a.query_key AND b.n = a.n + a.apart),
shared AS (
    SELECT *, count(*) FILTER (source[1] <> 'c') OVER (
        PARTITION BY one, other ORDER BY known
        RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS overlap FROM pairs)
SELECT source, query_key, known, 1.0 / (1 + overlap) AS vouched FROM shared
