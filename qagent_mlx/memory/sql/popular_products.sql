-- What the users of a shop went for before the start of some days, the most first: each user counts
-- once a day and product, by the heaviest thing that they did with it, half as much each half-life.
WITH touched AS (
    SELECT date_trunc('day', ts) AS day, user_id, product_id,
        max(CASE type WHEN 'view' THEN {view} WHEN 'click' THEN {click} WHEN 'cart' THEN {cart}
            ELSE {purchase} END) AS weight
    FROM events WHERE type <> 'search' AND product_id IS NOT NULL GROUP BY ALL),
daily AS (SELECT day, product_id, sum(weight) AS weight FROM touched GROUP BY ALL),
asked AS (SELECT unnest($days)::TIMESTAMP AS asked)
SELECT asked, g.title, g.leaf,
    round(sum(weight * pow(2.0, -date_diff('day', day, asked) / {half_life})), 9) AS worth
FROM asked JOIN daily ON day < asked AND day >= asked - INTERVAL '{window} days'
    JOIN goods g USING (product_id)
GROUP BY asked, product_id, g.title, g.leaf
QUALIFY row_number() OVER (PARTITION BY asked ORDER BY worth DESC, product_id) <= {most}
ORDER BY asked, worth DESC, product_id
