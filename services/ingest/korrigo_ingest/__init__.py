"""From the scanner to the copy: scans, pages, booklets, and the source of each copy. No page is ever lost."""
