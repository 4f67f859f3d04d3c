"""What several tests build on: helpers, stand-ins and made-up runs; no test is in here."""
