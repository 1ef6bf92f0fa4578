-- What users came back for after they had engaged with a category, for the categories and days in
-- `wanted`: P(leaf), and mean and deviation of ln days until then. The deviation is drawn towards
-- 0.6, with the weight of two returns. Later than 45 days it is no return.
WITH wanted AS ({wanted}),
counted AS (
    SELECT w.category, w.day, r.leaf, count(*) AS n, avg(ln(greatest(r.delay, 0.02))) AS pace,
           var_pop(ln(greatest(r.delay, 0.02))) AS variance
    FROM wanted w JOIN returns r ON r.category = w.category AND r.known < w.day
    WHERE r.leaf IS NOT NULL AND r.delay < 45.0 GROUP BY ALL)
SELECT category, day, leaf, n / (sum(n) OVER (PARTITION BY category, day) + 3.0), round(pace, 9),
       round(sqrt((variance * n + 2.0 * 0.6 ** 2) / (n + 2.0)), 9)
FROM counted ORDER BY category, day, leaf
