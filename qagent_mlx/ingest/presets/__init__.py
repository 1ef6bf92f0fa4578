"""Named formats: exports of shop systems and analytics, and public data sets.

files -> `looking` (what each looks like) -> `registry` (whose format that is)
      -> the preset's `Extract` (SQL) -> `loading` -> the same checks as any file
"""
