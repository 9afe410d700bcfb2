"""What only the book needs: source on the page, self-checks, figures."""
