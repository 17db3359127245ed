"""What was used, what it cost and what it earned: rows for people and programs, read from rollups only.

    usage      totals by customer, model, key and day
    margin     the same with revenue, cost and the margin between them

Amounts are decimal texts in major units with all 12 decimals, and every row names its currency.
"""
