"""From whatever the user names to the staged table of text.

    names -> `locations` -> files, tables, addresses -> `opening` -> a `Source` -> `staging`

`archives` unpacks, `text` checks and decodes, and `tabular`, `documents`, `spreadsheets`,
`databases` and `remote` read one family of forms each.
"""
