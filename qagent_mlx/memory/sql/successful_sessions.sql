-- Sessions with their first search that led to an engagement (`join` is SEMI JOIN), or with their
-- first search whatever came of it (LEFT JOIN). What comes at $before or later does not count.
-- What is listed and counted of a session is so of those alone that are chosen.
WITH log AS (SELECT * FROM events WHERE ts < $before),
found AS (
    SELECT DISTINCT search_id FROM log
    WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL),
started AS (SELECT session_id, min(ts) AS start FROM log GROUP BY session_id),
begun AS (SELECT user_id, min(ts) AS start FROM log GROUP BY user_id),
first AS (
    SELECT s.session_id, any_value(s.user_id) AS user_id,
           arg_min(s.event_id, (s.ts, s.event_id)) AS event_id
    FROM log s {join} found f ON f.search_id = s.event_id
    WHERE s.type = 'search' GROUP BY s.session_id),
chosen AS MATERIALIZED (
    SELECT f.session_id, f.user_id, f.event_id, s.start
    FROM first f JOIN started s USING (session_id) JOIN begun b USING (user_id)
    WHERE s.start >= $after AND (s.start > b.start OR NOT $known)
    ORDER BY s.start {order}, f.event_id {order} {limit}),
engaged AS (
    SELECT search_id, product_id, min(ts) AS ts,
           max(CASE type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END) AS level
    FROM log SEMI JOIN chosen ON chosen.event_id = log.search_id
    WHERE type IN ('click', 'cart', 'purchase') GROUP BY search_id, product_id),
ranked AS (
    SELECT search_id, list(product_id ORDER BY level DESC, ts, product_id) AS products
    FROM engaged GROUP BY search_id),
earlier AS (
    SELECT c.session_id, count(e.event_id) AS n
    FROM chosen c LEFT JOIN log e ON e.user_id = c.user_id AND e.ts < c.start
    GROUP BY c.session_id)
SELECT c.user_id, c.start, s.query, s.query_key, coalesce(r.products, []), h.n
FROM chosen c JOIN log s ON s.event_id = c.event_id
LEFT JOIN ranked r ON r.search_id = c.event_id JOIN earlier h ON h.session_id = c.session_id
ORDER BY c.start, c.event_id
