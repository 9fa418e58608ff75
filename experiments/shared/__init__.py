"""Parts of the scripts that make the papers' tables and figures again."""
