-- A user's events before a moment, each with the query or the product's title.
SELECT e.ts, e.type,
       coalesce(CASE WHEN e.type = 'search' THEN e.query END, p.title, e.query, '')
FROM events e LEFT JOIN products p USING (product_id)
WHERE e.user_id = ? AND e.ts < ? ORDER BY e.ts, e.event_id
