-- The facts of products, with the values of their attributes as a list.
SELECT product_id, title, brand, top, leaf,
       coalesce(map_values(from_json(attributes, '"MAP(VARCHAR, VARCHAR)"')), []), price, low, high
FROM goods WHERE product_id IN (SELECT unnest($1))
