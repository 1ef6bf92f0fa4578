-- The events of the users that the condition `where` selects, by user and time.
SELECT user_id, event_id, epoch_us(ts), list_position({types}, type::VARCHAR) - 1, query,
       query_key, product_id, session_id, search_id
FROM events WHERE {where} ORDER BY user_id, ts, event_id
