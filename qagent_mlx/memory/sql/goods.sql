-- The catalog, with departments, leaf categories and the limits of price bands. ``title_kinds`` name
-- products that have no category.
SELECT p.product_id, p.title, p.brand, p.category, p.attributes,
       trim(split_part(p.category, '>', 1)) AS top, coalesce(trim(split_part(p.category, '>', -1)), k.kind) AS leaf,
       l.price, l.low, l.high
FROM products p JOIN ({price_limits}) l USING (product_id) LEFT JOIN title_kinds k USING (product_id)
