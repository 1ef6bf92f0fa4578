-- Sessions in which something was clicked, put into the cart or bought: a row for each of those
-- products, the strongest engagement first, however they were found. What comes at $before or later
-- does not count.
WITH log AS (SELECT * FROM events WHERE ts < $before),
engaged AS (
    SELECT session_id, product_id, min(ts) AS ts,
           max(CASE type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END) AS level
    FROM log WHERE type IN ('click', 'cart', 'purchase') AND product_id IS NOT NULL
    GROUP BY session_id, product_id),
started AS (SELECT session_id, any_value(user_id) AS user_id, min(ts) AS start
            FROM log GROUP BY session_id),
earlier AS (
    SELECT st.session_id, count(e.event_id) AS n
    FROM started st LEFT JOIN log e ON e.user_id = st.user_id AND e.ts < st.start
    GROUP BY st.session_id)
SELECT st.session_id, st.user_id, st.start, '', '', h.n, e.product_id
FROM engaged e JOIN started st USING (session_id) JOIN earlier h USING (session_id)
WHERE st.start >= $after ORDER BY st.start, st.session_id, e.level DESC, e.ts, e.product_id
