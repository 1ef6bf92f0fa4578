-- The catalog, with departments, leaf categories and the limits of price bands.
SELECT p.product_id, p.title, p.brand, p.category, p.attributes,
       trim(split_part(p.category, '>', 1)) AS top, trim(split_part(p.category, '>', -1)) AS leaf,
       l.price, l.low, l.high
FROM products p JOIN ({price_limits}) l USING (product_id)
