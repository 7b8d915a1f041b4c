"""Reading pages: crawl archives, web pages, tables, repositories, wherever they lie."""
