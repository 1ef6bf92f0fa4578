-- The catalog's texts that hold more than ASCII.
SELECT DISTINCT text
FROM goods, LATERAL (SELECT unnest([title, brand, category, attributes]) AS text)
WHERE length(text) < strlen(text)
