-- Sessions with their first search that led to an engagement (`join` is SEMI JOIN), or with their
-- first search whatever came of it (LEFT JOIN). What comes at $before or later does not count.
-- What is listed and counted of a session is so of those alone that are chosen. A row for each of
-- its products, the strongest engagement first: of a long log, lists would not fit the memory.
WITH log AS (SELECT * FROM events WHERE ts < $before),
found AS (
    SELECT DISTINCT search_id FROM log
    WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL),
started AS (SELECT session_id, min(ts) AS start FROM log GROUP BY session_id),
begun AS (SELECT user_id, min(ts) AS start FROM log GROUP BY user_id),
first AS (
    SELECT s.session_id, s.user_id, s.event_id
    FROM log s {join} found f ON f.search_id = s.event_id WHERE s.type = 'search'
    QUALIFY row_number() OVER (PARTITION BY s.session_id ORDER BY s.ts, s.event_id) = 1),
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
earlier AS (
    SELECT c.session_id, count(e.event_id) AS n
    FROM chosen c LEFT JOIN log e ON e.user_id = c.user_id AND e.ts < c.start
    GROUP BY c.session_id)
SELECT c.event_id, c.user_id, c.start, s.query, s.query_key, h.n, e.product_id
FROM chosen c JOIN log s ON s.event_id = c.event_id JOIN earlier h ON h.session_id = c.session_id
LEFT JOIN engaged e ON e.search_id = c.event_id
ORDER BY c.start, c.event_id, e.level DESC, e.ts, e.product_id
