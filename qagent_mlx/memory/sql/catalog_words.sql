-- The words of the catalog's texts, of those in ASCII; the others are added by `create_catalog_words`.
CREATE OR REPLACE {kind} catalog_words AS
SELECT DISTINCT unnest(regexp_extract_all(lower(text), '[a-z0-9]+')) AS word
FROM goods, LATERAL (SELECT unnest([title, brand, category, attributes]) AS text)
WHERE length(text) = strlen(text)
