-- What users came back for after they had engaged with a category, for the categories and days in
-- `wanted`: lists of leaves, of P(leaf), and of mean and deviation of ln days until then. The
-- deviation is drawn towards 0.6, with the weight of two returns. Later than 45 days it is none.
WITH wanted AS ({wanted}),
counted AS (
    SELECT w.category, w.day, r.leaf, count(*) AS n,
           round(avg(ln(greatest(r.delay, 0.02))), 9) AS pace,
           var_pop(ln(greatest(r.delay, 0.02))) AS variance
    FROM wanted w JOIN returns r ON r.category = w.category AND r.known < w.day
    WHERE r.leaf IS NOT NULL AND r.delay < 45.0 GROUP BY ALL),
drawn AS (
    SELECT category, day, leaf, n / (sum(n) OVER (PARTITION BY category, day) + 3.0) AS p, pace,
           round(sqrt((variance * n + 2.0 * 0.6 ** 2) / (n + 2.0)), 9) AS spread
    FROM counted)
SELECT category, day, list(leaf ORDER BY leaf), list(p ORDER BY leaf), list(pace ORDER BY leaf),
       list(spread ORDER BY leaf)
FROM drawn GROUP BY category, day
