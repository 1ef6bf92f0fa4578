-- The newest events before each of some moments, the newest first, with the age in days.
SELECT m.moment, e.type, e.query_key,
       coalesce(CASE WHEN e.type = 'search' THEN e.query END, p.title, e.query, '') AS text,
       epoch(m.as_of - e.ts) / 86400 AS age
FROM (SELECT unnest($numbers) AS moment, unnest($users) AS user_id,
             unnest($times)::TIMESTAMP AS as_of) m
JOIN events e ON e.user_id = m.user_id AND e.ts < m.as_of
LEFT JOIN products p USING (product_id)
QUALIFY row_number() OVER (PARTITION BY m.moment ORDER BY e.ts DESC, e.event_id DESC) <= {most}
ORDER BY m.moment, e.ts DESC, e.event_id DESC
