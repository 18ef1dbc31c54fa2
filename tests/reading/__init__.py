"""What real files hold: each test names a kind of situation and its outcome, and scripts/situations.py lists them."""
