"""One recording under the lens: schemes side by side, and whether chains can be trusted.

Open `comparison` first; `diagnostics` has R-hat and effective draws, `draws_on_disk` long chains.
"""
