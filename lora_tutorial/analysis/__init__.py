"""What is computed from models and records: costs, subspaces, tables, published figures."""
