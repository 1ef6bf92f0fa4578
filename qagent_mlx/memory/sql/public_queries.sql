-- Of the keys asked for at moments, those that $least_users people or more had searched by then.
WITH asked AS (SELECT unnest($numbers) AS moment, unnest($times)::TIMESTAMP AS as_of,
                      unnest($keys)::VARCHAR AS query_key)
SELECT a.moment, a.query_key FROM asked a
JOIN (SELECT query_key, user_id, min(ts) AS first FROM events
      WHERE type = 'search' AND query_key IN (SELECT query_key FROM asked)
      GROUP BY ALL) e ON e.query_key = a.query_key AND e.first < a.as_of
GROUP BY ALL HAVING count(*) >= $least_users
