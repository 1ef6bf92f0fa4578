-- How often a category is bought again, and after how many days (once three such times are known),
-- for the categories and days in `wanted`.
WITH wanted AS ({wanted})
SELECT leaf, day, count(c.gap) / (count(*) + 3.0),
       CASE WHEN count(c.gap) >= 3 THEN median(c.gap) ELSE 'nan'::DOUBLE END
FROM wanted w JOIN cycles c USING (leaf) WHERE c.known < w.day GROUP BY ALL
