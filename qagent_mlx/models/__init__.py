"""Language models: loading, running and naming them."""
