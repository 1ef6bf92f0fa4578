-- The 120 likeliest queries after each source at the start of a day, the likeliest first:
-- P(query | source) and the usual days until then, for the sources and days in `wanted`.
WITH wanted AS ({wanted}),
counted AS (
    SELECT w.source, w.day, s.query_key, {count} AS n,
           round(exp(avg(ln(greatest(s.delay, 0.02)))), 9) AS delay
    FROM wanted w JOIN {steps} s ON s.source = w.source AND s.known < w.day GROUP BY ALL),
most AS (
    SELECT *, row_number() OVER (PARTITION BY source, day ORDER BY n DESC, query_key) AS rank
    FROM counted QUALIFY rank <= 120),
totals AS (SELECT source, day, sum(n) AS n FROM counted GROUP BY source, day)
SELECT source, day, m.query_key, m.n / (t.n + 5) AS p, m.delay
FROM most m JOIN totals t USING (source, day)
ORDER BY day, source, rank
