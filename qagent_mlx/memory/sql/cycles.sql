-- How often a category is bought again, after how many days (once three such times are known), and
-- after how many of them some of its buyers have bought it again (see repurchase.py), for the
-- categories and days in `wanted`.
WITH wanted AS ({wanted}),
known AS (
    SELECT leaf, day, count(*) AS purchases, count(c.gap) AS again, median(c.gap) AS middle,
           list_sort(list_concat(
               coalesce(list(c.gap) FILTER (c.gap IS NOT NULL), []),
               coalesce(list(c.more) FILTER (epoch(c.known) + 86400 * c.more < epoch(w.day)), [])
           )) AS gaps
    FROM wanted w JOIN cycles c USING (leaf) WHERE c.known < w.day GROUP BY ALL)
SELECT leaf, day, again / (purchases + 3.0),
       CASE WHEN again >= 3 THEN middle ELSE 'nan'::DOUBLE END,
       CASE WHEN purchases >= {evidence}
            THEN coalesce(gaps[ceil({share} * purchases)::INTEGER], 'inf'::DOUBLE)
            ELSE 'nan'::DOUBLE END
FROM known
