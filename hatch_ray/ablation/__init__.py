"""The paper's ablations (Tables 2 and 3, figures 3 and 4): what is left out, which stages are shared, what it shows."""
