-- What had become of queries at the start of a day, for the queries and days in `wanted`: the
-- category that they led to, how often they were searched, with what success and with which
-- products, and how often who had searched them came back to them.
WITH wanted AS ({wanted}),
led AS (
    SELECT w.query_key, w.day, o.event_id, o.product_id, o.first_product
    FROM wanted w JOIN outcomes o ON o.query_key = w.query_key AND o.known < w.day),
leafs AS (      -- the most frequent; of equals the one that came first
    SELECT query_key, day, arg_max(leaf, (n, -first)) AS leaf
    FROM (SELECT l.query_key, l.day, g.leaf, count(*) AS n, min(l.event_id) AS first
          FROM led l JOIN goods g ON g.product_id = l.first_product
          WHERE g.leaf <> '' GROUP BY ALL) GROUP BY ALL),
asked AS (
    SELECT w.query_key, w.day, sum(h.n) AS n
    FROM wanted w JOIN hourly h ON h.query_key = w.query_key AND h.hour < w.day GROUP BY ALL),
met AS (        -- what earlier searchers engaged with
    SELECT query_key, day, sum(n) AS n, max(n) AS most, list_sum(max(n, 10)) AS ten,
           arg_max(product_id, (n, product_id)) AS main
    FROM (SELECT query_key, day, product_id, count(*) AS n FROM led GROUP BY ALL) GROUP BY ALL),
back AS (
    SELECT w.query_key, w.day, count(*) AS n, count(*) FILTER (r.same) AS same
    FROM wanted w JOIN returns r ON r.query_key = w.query_key AND r.known < w.day GROUP BY ALL)
SELECT query_key, day, l.leaf, a.n::DOUBLE, coalesce(m.n, 0)::DOUBLE, coalesce(m.most, 0)::DOUBLE,
       coalesce(m.ten, 0)::DOUBLE, m.main, coalesce(b.n, 0)::DOUBLE, coalesce(b.same, 0)::DOUBLE
FROM asked a LEFT JOIN met m USING (query_key, day) LEFT JOIN leafs l USING (query_key, day)
LEFT JOIN back b USING (query_key, day)
